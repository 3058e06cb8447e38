// Parameters are checked by the head process, before any task: names, types, ranges.

include { check_gpu; has_gpu } from './gpu'
include { parameter_rules; refusal } from './rules'

// Return all parameters, settled; stop before the first task and name all that are unknown, of another type or out of range.
def check_parameters(given, profile) {
    def rules = parameter_rules()
    def usual = rules.collectEntries { name, rule -> [name, rule['default']] }
    // without what configurations of institutions set for every workflow
    def params = usual + given.findAll { name, _value -> !(name ==~ /(custom_config|config_profile)_[a-z]+|max_(memory|cpus|time)/) }
    def faults = params.collect { name, value ->
        rules.containsKey(name) ? refusal(name, value, rules[name]) : "unknown parameter ${name}; did you mean ${meant(name.replace('-', '_'), rules)}?"
    }.findAll()
    if (faults) { exit(2, faults.join('\n')) }
    return settle(params, rules, profile)
}

// The parameter that an unknown name is a synonym of, by the schema, or else looks like.
def meant(name, rules) {
    return rules.find { _other, rule -> name in rule.synonyms }?.key ?: nearest(name, rules.keySet())
}

// The name that holds the one given or is held by it, or else the one with the smallest edit distance.
def nearest(name, names) {
    return names.min { other ->
        other.contains(name) || name.contains(other) ? 0
            : org.codehaus.groovy.runtime.MethodRankHelper.damerauLevenshteinDistance(name.toList().toArray(), other.toList().toArray())
    }
}

// All parameters, with defaults that depend on harmonize, which takes the place of matching and smoothing, or on the gpu profile.
def settle(params, rules, profile) {
    def harmonized = params.harmonize.toString() != 'off'
    def asked = ['match', 'smooth_z'].find { name -> harmonized && params[name] != null && !(params[name].toString() ==~ /off|0+(\.0*)?/) }
    if (asked) {
        def got = "got harmonize ${params.harmonize} with ${asked} ${params[asked]}"
        exit(2, "harmonize takes the place of match and smooth_z, ${got}; leave one of them out")
    }
    def filled = rules.findAll { name, rule -> rule.containsKey('usual') && params[name] == null }
    def kinds = [harmonized ? 'harmonized' : null, has_gpu(profile) ? 'gpu' : null, 'usual']
    def settled = params + filled.collectEntries { name, rule -> [name, rule[kinds.find { kind -> rule.containsKey(kind) }]] }
    def booleans = rules.findAll { _name, rule -> rule.type == 'boolean' }.collectEntries { name, _rule -> [name, settled[name].toString() == 'true'] }
    return check_gpu(params, settled + booleans + [smooth_z: settled.smooth_z.toString().toDouble()], profile)
}
