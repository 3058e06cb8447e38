// The samples of a run and their files, from one volume or a sample sheet.

include { digest; existing; check_apart; check_whole } from './paths'

// One map for each sample: sample, image and, where given, mask, flat_field, sections, voxel_um.
def read_samples(params) {
    def input = existing(params.input, 'input')
    if (!input.name.toLowerCase().endsWith('.csv')) {
        return [[sample: input.name.replaceFirst(/(?i)(?:\.ozx|(?:\.ome)?\.zarr(?:\.zip)?|(?:\.ome)?\.tiff?|\.btf|\.tf8|\.nii(?:\.gz)?|\.nrrd|\.nhdr|\.mh[ad]|\.npy)$/, ''), image: input]]
    }
    def columns = ['sample', 'image', 'mask', 'flat_field', 'sections', 'voxel_um']
    def rows = input.splitCsv(header: true, strip: true, quote: '"')
    if (!rows) { exit(2, "sample sheet ${input.name} has no rows; give one line for each sample under a header") }
    def names = rows[0].keySet()
    if (names.any { name -> !columns.contains(name) } || !names.containsAll(['sample', 'image'])) {
        exit(2, "sample sheet ${input.name} has columns ${names.join(', ')}; expected sample, image and, optionally, mask, flat_field, sections, voxel_um")
    }
    rows.eachWithIndex { row, number ->
        if (!row.sample || !row.image) { exit(2, "sample sheet ${input.name}, row ${number + 1}: sample and image must not be empty") }
    }
    def twice = rows.countBy { row -> row.sample }.find { _sample, count -> count > 1 }
    if (twice) { exit(2, "sample sheet ${input.name} names sample ${twice.key} in ${twice.value} rows; give every sample a name of its own") }
    return rows.collect { row -> row + [image: existing(row.image, 'image', row.sample, input.parent)] + [folder: input.parent] }
}

// A sample's name is a folder of the results and a word in commands; n4flow.pipeline.plan has the same rule.
def check_name(sample) {
    if (!(sample ==~ /(?U)\w[\w .+-]*/) || sample in ['mask', 'pipeline_info']) {
        def rule = 'letters, digits, spaces and . _ + -, beginning with a letter or digit'
        exit(2, "sample name '${sample}' must be ${rule}, and not mask or pipeline_info; give another in a sample sheet")
    }
}

// The files of one sample: [meta, volume, image, mask, table, flat]; mask, table and flat are empty lists where not given.
def sample_files(row, params) {
    check_name(row.sample)
    def sections = row.sections ?: params.sections
    def counted = sections.toString().isInteger()
    def table = counted ? [] : existing(sections, 'sections', row.sample, row.sections ? row.folder : null)
    def mask = row.mask ?: params.mask
    if (mask) { mask = existing(mask, 'mask', row.sample, row.mask ? row.folder : null) }
    def flat = row.flat_field ?: params.flat_field
    if (flat) { flat = existing(flat, 'flat_field', row.sample, row.flat_field ? row.folder : null) }
    check_apart(file("${params.outdir}/${row.sample}"), [row.image, mask, table, flat])
    [row.image, mask, flat].findAll().each { path -> check_whole(path) }
    def voxel_um = row.voxel_um ?: params.voxel_um
    def volume = [
        options: [voxel_um ? "--voxel-um '${voxel_um}'" : '', params.channel != null ? "--channel ${params.channel}" : '',
            params.allow_missing_chunks.toString() == 'true' ? '--allow-missing-chunks' : ''].join(' ').trim(),
        sections: counted ? sections : null,
        version: workflow.manifest.version,  // results of another version are not taken over
        digests: [row.image, mask, flat].collect { path -> path ? digest(path) : null },
    ]
    return [[id: row.sample], volume, row.image, mask ?: [], table, flat ?: []]
}
