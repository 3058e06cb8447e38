// Sample sheets.

include { parameter_rules; read_schema; refuse } from './rules'

// The rows of a sample sheet, and the folder that their files are relative to.
def read_sheet(sheet) {
    def columns = read_schema().sample_sheet
    def rows = sheet.splitCsv(header: true, strip: true, quote: '"')
    if (!rows) { exit(2, "sample sheet ${sheet.name} has no rows; give one line for each sample under a header") }
    def names = rows[0].keySet()
    if (!columns.properties.keySet().containsAll(names) || !names.containsAll(columns.required)) {
        def expected = "${columns.required.join(', ')} and, optionally, ${(columns.properties.keySet() - columns.required).join(', ')}"
        exit(2, "sample sheet ${sheet.name} has columns ${names.join(', ')}; expected ${expected}${meant(names, columns.properties.keySet())}")
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

// What makes a header another one than it looks: the separator of its cells, or capitals.
def meant(names, columns) {
    def separator = [';', '\t', '|'].find { mark -> names.size() == 1 && names[0].contains(mark) }
    if (separator) { return "; separate cells by commas, not by ${separator == '\t' ? 'tabs' : separator}" }
    def capitals = names.findAll { name -> !(name in columns) && name.toLowerCase() in columns }*.toLowerCase()
    return capitals ? "; write ${capitals.join(', ')} in small letters" : ''
}
