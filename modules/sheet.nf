// The samples that a user gives, one volume or a sample sheet: names and files are checked before any task.

include { check_whole; without_suffix } from './formats'
include { address; existing; split_pattern } from './paths'
include { check_apart; check_channel } from './places'
include { parameter_rules; read_schema; refusal; wrong_name } from './rules'

// [meta, files] of each sample of the setting input, as N4FLOW takes them; meta = [id: 'brain'].
def read_samples(settings) {
    def name = settings.input?.toString()
    if (!name) { exit(2, "parameter input is missing; give a volume, a CSV of samples, or 'phantom' to try the installation") }
    def input = address(name) ? null : existing(split_pattern(name)[0], 'input')
    def rows = input?.name?.toLowerCase()?.endsWith('.csv') ? read_sheet(input)
        : [[sample: without_suffix(input ? input.name : name.tokenize('/')[-1]), image: name]]
    return rows.collect { row -> [[id: row.sample], files_of(row, settings)] }
}

// The files of a row; what it leaves empty is the setting of that name.
def files_of(row, settings) {
    wrong_name(row.sample)?.with { sentence -> exit(2, sentence) }
    def target = file("${settings.outdir}/${row.sample}", glob: false)
    def (image, planes) = address(row.image) ? [row.image, null] : split_pattern(row.image, row.folder)
    def given = row + ['mask', 'flat_field', 'sections'].collectEntries { name -> [name, row[name] ?: settings[name]] }
    def (mask, mask_planes) = given.mask ? split_pattern(given.mask, row.mask ? row.folder : null) : [null, null]
    def paths = (given + [image: image, mask: mask]).subMap('image', 'mask', 'flat_field', 'sections')
        .findAll { name, value -> value && !(name == 'sections' && value.toString().isInteger()) && !(name == 'image' && address(value)) }
        .collectEntries { name, value -> [name, existing(value, name, row.sample, row[name] ? row.folder : null)] }
    check_apart(target, paths.values())
    check_channel(target, row.channel ?: settings.channel)
    paths.findAll { name, _path -> name != 'sections' }.each { _name, path -> check_whole(path) }
    return given.subMap('image', 'sections', 'voxel_um', 'channel') + paths + [planes: planes, mask_planes: mask_planes]
}

// The rows of a sample sheet, and the folder that their files are relative to.
def read_sheet(sheet) {
    def (columns, rules, rows) = [read_schema().sample_sheet, parameter_rules(), sheet.splitCsv(header: true, strip: true, quote: '"')]
    if (!rows) { exit(2, "sample sheet ${sheet.name} has no rows; give one line for each sample under a header") }
    def names = rows[0].keySet()
    if (!columns.properties.keySet().containsAll(names) || !names.containsAll(columns.required)) {
        def expected = "${columns.required.join(', ')} and, optionally, ${(columns.properties.keySet() - columns.required).join(', ')}"
        exit(2, "sample sheet ${sheet.name} has columns ${names.join(', ')}; expected ${expected}${meant(names, columns.properties.keySet())}")
    }
    rows.eachWithIndex { row, number ->
        def fault = row.sample && row.image ? ['voxel_um', 'channel'].findResult { name -> refusal(name, row[name] ?: null, rules[name]) }
            : 'sample and image must not be empty'
        if (fault) { exit(2, "sample sheet ${sheet.name}, row ${number + 1}: ${fault}") }
    }
    def twice = rows.countBy { row -> row.sample }.find { _sample, count -> count > 1 }
    if (twice) { exit(2, "sample sheet ${sheet.name} names sample ${twice.key} in ${twice.value} rows; give every sample a name of its own") }
    return rows.collect { row -> row + [folder: sheet.parent] }
}

// What makes a header another one than it looks: the separator of its cells, or capitals.
def meant(names, columns) {
    def separator = [';', '\t', '|'].find { mark -> names.size() == 1 && names[0].contains(mark) }
    if (separator) { return "; separate cells by commas, not by ${separator == '\t' ? 'tabs' : separator}" }
    def capitals = names.findAll { name -> !(name in columns) && name.toLowerCase() in columns }*.toLowerCase()
    return capitals ? "; write ${capitals.join(', ')} in small letters" : ''
}
