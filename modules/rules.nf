// The rules of nextflow_schema.json, and what they refuse. The head process has no Python: what must stop a run before its
// first task is checked here, by the rules that `n4flow run` takes from the same file. All else INSPECT checks.

def read_schema() {
    return new groovy.json.JsonSlurper().parseText(file("${moduleDir}/../nextflow_schema.json").text)
}

def parameter_rules() {
    return read_schema()['$defs'].values().collectEntries { group -> group.properties }
}

// What is wrong with the name of a sample; null where nothing is.
def wrong_name(name) {
    def rule = read_schema().sample_sheet.properties.sample
    return name != null && allowed(name, rule) ? null : "sample name '${name}' must be ${expectation(rule)}; give another in a sample sheet"
}

// Parameters that a process takes, those whose rule in the schema lists it, as options of its command. What a sample may have of
// its own comes with the sample.
def options(settings, process) {
    def taken = parameter_rules().findAll { name, rule -> process in rule.stages && !rule.sample && settings[name] != null }
    return taken.collect { name, rule ->
        def option = name.replace('_', '-')
        if (rule.type == 'boolean') { return settings[name] == rule['default'] ? '' : "--${rule['default'] ? 'no-' : ''}${option}" }
        "--${option} '${settings[name].toString().replace("'", "'\\''")}'"
    }.join(' ')
}

// What is wrong with a value; null where nothing is.
def refusal(name, value, rule) {
    if (value == null || allowed(value, rule)) { return null }
    def numeric = value.toString().isNumber() && rule.type != 'string'
    return "parameter ${name} must be ${expectation(rule)}, got ${numeric || !(value instanceof CharSequence) ? value : "'${value}'"}"
}

// Whether a value, or the text of one, fits a rule.
def allowed(value, rule) {
    def text = value.toString()
    def types = [rule.type].flatten()
    if (types.contains('integer') && text.isInteger() || types.contains('number') && text.isNumber()) {
        def number = text.toDouble()
        return (rule.minimum == null || number >= rule.minimum) && (rule.maximum == null || number <= rule.maximum)
            && (rule.exclusiveMinimum == null || number > rule.exclusiveMinimum)
    }
    if (rule['enum']) { return rule['enum'].contains(text) }
    if (rule.pattern) { return text ==~ "(?U)${rule.pattern}" }  // as Python reads it, where letters are those of all scripts
    return types.contains('boolean') ? text in ['true', 'false'] : types.contains('string')
}

// What a rule asks for, in words.
def expectation(rule) {
    if (rule['enum']) { return rule['enum'].join(', ').replaceFirst(/, ([^,]*)$/, ' or $1') }
    def words = [integer: 'a whole number', number: 'a number', string: 'text', boolean: 'true or false']
    def low = rule.exclusiveMinimum == null ? rule.minimum == null ? '' : " from ${rule.minimum}" : " above ${rule.exclusiveMinimum}"
    def high = rule.maximum == null ? rule.minimum == null ? '' : ' upwards' : " to ${rule.maximum}"
    return (rule.expected ?: [rule.type].flatten().collect { type -> words[type] }.join(' or ')) + low + high + (rule.unit ? " (${rule.unit})" : '')
}
