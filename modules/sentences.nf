// What the sentences about wrong parameters are made of.

// The name that holds the one given or is held by it, or else the one with the smallest edit distance.
def nearest(name, names) {
    return names.min { other -> other.contains(name) || name.contains(other) ? 0 : distance(name, other) }
}

def distance(a, b) {
    def row = (0..b.size()).toList()
    (0..<a.size()).each { i ->
        def next = [i + 1]
        (0..<b.size()).each { j ->
            next << [row[j + 1] + 1, next[j] + 1, row[j] + (a[i] == b[j] ? 0 : 1)].min()
        }
        row = next
    }
    return row[-1]
}

// What a rule asks for, in words.
def expectation(rule) {
    if (rule['enum']) {
        def names = rule['enum']
        return names.size() == 1 ? names[0] : names.init().join(', ') + ' or ' + names.last()
    }
    def words = [integer: 'a whole number', number: 'a number', string: 'text', boolean: 'true or false']
    def types = rule.type instanceof List ? rule.type : [rule.type]
    def text = rule.expected ?: types.collect { type -> words[type] }.join(' or ')
    if (rule.exclusiveMinimum != null) {
        text += " above ${rule.exclusiveMinimum}" + (rule.maximum != null ? " to ${rule.maximum}" : '')
    } else if (rule.minimum != null) {
        text += " from ${rule.minimum}" + (rule.maximum != null ? " to ${rule.maximum}" : ' upwards')
    }
    return text + (rule.unit ? " (${rule.unit})" : '')
}
