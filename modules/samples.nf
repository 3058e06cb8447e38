// The samples of a run and their files, from one volume or a sample sheet.

include { check_whole; without_suffix } from './formats'
include { digest; existing; check_apart; check_channel; split_pattern } from './paths'
include { allowed; expectation; parameter_rules; read_schema; refuse } from './rules'

// [meta, sample] of each sample of the parameter input.
def read_samples(params) {
    def input = existing(split_pattern(params.input)[0], 'input')
    def rows = input.name.toLowerCase().endsWith('.csv') ? read_sheet(input) : [[sample: without_suffix(input.name), image: params.input]]
    return rows.collect { row -> sample_of(row, params) }
}

// The rows of a sample sheet, and the folder that their files are relative to.
def read_sheet(sheet) {
    def columns = read_schema().sample_sheet
    def rows = sheet.splitCsv(header: true, strip: true, quote: '"')
    if (!rows) { exit(2, "sample sheet ${sheet.name} has no rows; give one line for each sample under a header") }
    def names = rows[0].keySet()
    if (!columns.properties.keySet().containsAll(names) || !names.containsAll(columns.required)) {
        def expected = "${columns.required.join(', ')} and, optionally, ${(columns.properties.keySet() - columns.required).join(', ')}"
        exit(2, "sample sheet ${sheet.name} has columns ${names.join(', ')}; expected ${expected}")
    }
    def rules = parameter_rules()
    rows.eachWithIndex { row, number ->
        if (!row.sample || !row.image) { exit(2, "sample sheet ${sheet.name}, row ${number + 1}: sample and image must not be empty") }
        ['voxel_um', 'channel'].each { name -> refuse(name, row[name] ?: null, rules[name]) }
    }
    def twice = rows.countBy { row -> row.sample }.find { _sample, count -> count > 1 }
    if (twice) { exit(2, "sample sheet ${sheet.name} names sample ${twice.key} in ${twice.value} rows; give every sample a name of its own") }
    return rows.collect { row -> row + [folder: sheet.parent] }
}

// [meta, sample] of a row; what the row leaves empty is the parameter of that name. In a sample, `volume` is what commands are
// told of it and what -resume must notice, `seen` the digests of its files by path, image to flat are its files or [], and to the
// lists stages add the files that they make. INSPECT adds its plan, and slabs_of and batches_of the part that one task works on.
def sample_of(row, params) {
    def rule = read_schema().sample_sheet.properties.sample
    if (!allowed(row.sample, rule)) { exit(2, "sample name '${row.sample}' must be ${expectation(rule)}; give another in a sample sheet") }
    def given = ['image', 'mask', 'flat_field', 'sections', 'voxel_um', 'channel'].collectEntries { name -> [name, row[name] ?: params[name]] }
    def planes = split_pattern(given.image, row.folder)[1]
    def counted = given.sections.toString().isInteger()
    def (image, mask, flat, table) = ['image', 'mask', 'flat_field', 'sections'].collect { name ->
        !given[name] || name == 'sections' && counted ? [] : existing(name == 'image' ? split_pattern(given[name], row.folder)[0] : given[name], name, row.sample, row[name] ? row.folder : null)
    }
    check_apart(file("${params.outdir}/${row.sample}"), [image, mask, table, flat])
    check_channel(file("${params.outdir}/${row.sample}"), given.channel)
    [image, mask, flat].findAll().each { path -> check_whole(path) }
    def seen = [image, mask, flat].findAll().collectEntries { path -> [(path): digest(path)] }
    def volume = [
        options: [given.voxel_um ? "--voxel-um '${given.voxel_um}'" : '', given.channel != null ? "--channel '${given.channel}'" : '',
            params.axes ? "--axes ${params.axes}" : '', params.mask_label != null ? "--mask-label ${params.mask_label}" : '',
            params.allow_missing_chunks.toString() == 'true' ? '--allow-missing-chunks' : '',
            params.allow_missing_planes.toString() == 'true' ? '--allow-missing-planes' : ''].findAll().join(' '),
        pattern: planes ? "/'${planes}'" : null,  // of files in the folder that is staged
        sections: counted ? given.sections : null,
        version: workflow.manifest.version,  // results of another version are not taken over
        digests: seen.values().toList(),
    ]
    return [[id: row.sample], [
        volume: volume, seen: seen, image: image, mask: mask, table: table, flat: flat,
        shrunken: [], masks: [], histograms: [], recipe: [], evidence: [], slabs: [],
    ]]
}
