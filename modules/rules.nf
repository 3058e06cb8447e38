// The rules of nextflow_schema.json, and what they refuse.

include { expectation } from './sentences'

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
