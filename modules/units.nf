// Samples of which all channels are processed. Each channel is a unit that goes through the stages by itself, with a meta and a plan
// of its own; `leader` is the meta of the one whose mask and bias fields it gets, its own or another's.

def units_of(samples) {
    return samples.flatMap { meta, sample -> channels_of(meta, sample) }
}

// A unit for each channel of a sample, and for their mean where that leads; a sample of one channel as it is.
def channels_of(meta, sample) {
    if (!sample.plan.channels) { return [[meta, sample + [leader: meta, joint: '']]] }
    return sample.plan.channels.collect { plan ->
        def options = sample.volume.options.replace("--channel 'all'", "--channel '${plan.channel}'".toString())
        def leader = sample.plan.fit_channel == 'each' ? plan.channel : sample.plan.fit_channel
        def joint = "--fit-channel '${sample.plan.fit_channel}'".toString()
        [meta + [n4flow_channel: plan.channel], sample + [plan: plan, volume: sample.volume + [options: options],
            leader: meta + [n4flow_channel: leader], joint: joint, channels: sample.plan.shape[0]]]
    }
}

// What a task is called by: its sample and, of several channels, its own.
def title(meta) {
    return meta.n4flow_channel == null ? meta.id : "${meta.id} channel ${meta.n4flow_channel}".toString()
}

// What others take over is estimated from these alone.
def leading(samples) {
    return samples.filter { meta, sample -> sample.leader == meta }
}

def following(samples) {
    return samples.filter { meta, sample -> sample.leader != meta }
}

// Samples with what was made of their leaders, [leader, files], as a field.
def taken_over(samples, field, made) {
    return samples.map { meta, sample -> [sample.leader, meta, sample] }.combine(made, by: 0)
        .map { _leader, meta, sample, files -> [meta, sample + [(field): files]] }
}

// Samples with the bias fields of their leaders; without means of channels, which nothing else is asked of.
def with_fields(samples) {
    def fields = leading(samples).map { meta, sample -> [meta, sample.recipe.findAll { path -> path.name ==~ /[23]0_bias_.*/ }] }
    return taken_over(samples, 'fields', fields)
        .filter { _meta, sample -> sample.plan.channel != 'mean' }
        .map { meta, sample -> [meta, sample + [recipe: (sample.recipe + sample.fields).unique()]] }
}
