// The samples of a run and their files, from one volume or a sample sheet.

include { check_whole; without_suffix } from './formats'
include { address; digest; existing; split_pattern } from './paths'
include { check_apart; check_channel } from './places'
include { allowed; expectation; read_schema } from './rules'
include { read_sheet } from './sheet'

// [meta, sample] of each sample of the parameter input.
def read_samples(params) {
    def text = params.input.toString()
    if (address(text)) { return [sample_of([sample: without_suffix(text.tokenize('/')[-1]), image: text], params)] }
    def input = existing(split_pattern(params.input)[0], 'input')
    def rows = input.name.toLowerCase().endsWith('.csv') ? read_sheet(input) : [[sample: without_suffix(input.name), image: params.input]]
    return rows.collect { row -> sample_of(row, params) }
}

// [meta, sample] of a row; what the row leaves empty is the parameter of that name. In a sample, `volume` is what commands are
// told of it and what -resume must notice, `seen` the digests of its files by path, image to flat are its files or [], and to the
// lists stages add the files that they make. INSPECT adds its plan, and slabs_of and batches_of the part that one task works on.
def sample_of(row, params) {
    def rule = read_schema().sample_sheet.properties.sample
    if (!allowed(row.sample, rule)) { exit(2, "sample name '${row.sample}' must be ${expectation(rule)}; give another in a sample sheet") }
    def given = ['image', 'mask', 'flat_field', 'sections', 'voxel_um', 'channel'].collectEntries { name -> [name, row[name] ?: params[name]] }
    def planes = address(given.image) ? '' : split_pattern(given.image, row.folder)[1]
    def counted = given.sections.toString().isInteger()
    def (image, mask, flat, table) = ['image', 'mask', 'flat_field', 'sections'].collect { name ->
        !given[name] || name == 'sections' && counted || name == 'image' && address(given.image) ? []
            : existing(name == 'image' ? split_pattern(given[name], row.folder)[0] : given[name], name, row.sample, row[name] ? row.folder : null)
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
        address: address(given.image),  // where image is []
        sections: counted ? given.sections : null,
        version: workflow.manifest.version,  // results of another version are not taken over
        digests: seen.values().toList(),
    ]
    return [[id: row.sample], [
        volume: volume, seen: seen, image: image, mask: mask, table: table, flat: flat,
        shrunken: [], masks: [], histograms: [], recipe: [], evidence: [], slabs: [],
    ]]
}
