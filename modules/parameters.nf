// Parameters are checked by the head process, before any task: names, types, ranges.

include { nearest; expectation } from './sentences'

// Stop before the first task when a parameter is unknown, of another type or out of range.
// n4flow.parameters checks the same schema with the same sentences for `n4flow run`; one test holds both to it.
def check_parameters(params, schema_file) {
    def rules = read_rules(schema_file)
    params.each { name, value ->
        if (!rules.containsKey(name)) {
            exit(2, "unknown parameter ${name}; did you mean ${nearest(name.replace('-', '_'), rules.keySet())}?")
        }
        refuse(name, value, rules[name])
    }
    if (params.input == null || params.input.toString() == '') {
        exit(2, "parameter input is missing; give a volume, a CSV of samples, or 'phantom' to try the installation")
    }
}

// The row of a sample sheet, whose voxel size follows the parameter's rule.
def check_row(row, schema_file) {
    refuse('voxel_um', row.voxel_um ?: null, read_rules(schema_file).voxel_um)
    return row
}

def read_rules(schema_file) {
    def schema = new groovy.json.JsonSlurper().parseText(schema_file.text)
    return schema['$defs'].values().collectEntries { group -> group.properties }
}

def refuse(name, value, rule) {
    if (value != null && !allowed(value, rule)) {
        def numeric = value.toString().isNumber() && rule.type != 'string'
        exit(2, "parameter ${name} must be ${expectation(rule)}, got ${numeric || !(value instanceof CharSequence) ? value : "'${value}'"}")
    }
}

// Whether a value, or the text of one, fits a rule of the schema.
def allowed(value, rule) {
    def text = value.toString()
    def types = rule.type instanceof List ? rule.type : [rule.type]
    def whole = types.contains('integer') && text.isInteger()
    def numeric = whole || (types.contains('number') && text.isNumber())
    if (rule.minimum != null || rule.exclusiveMinimum != null || rule.maximum != null) {
        if (numeric) {
            def number = text.toDouble()
            if (rule.minimum != null && number < rule.minimum) { return false }
            if (rule.exclusiveMinimum != null && number <= rule.exclusiveMinimum) { return false }
            if (rule.maximum != null && number > rule.maximum) { return false }
            return true
        }
    }
    if (rule['enum']) { return rule['enum'].contains(text) }
    if (rule.pattern) { return text ==~ rule.pattern }
    if (types.contains('boolean')) { return text in ['true', 'false'] }
    return numeric || types.contains('string')
}
