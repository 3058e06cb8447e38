// The samples of a run and their files, from one volume or a sample sheet.

include { digest } from './channels'

// One map for each sample: sample, image and, where given, mask, sections, voxel_um.
def read_samples(params) {
    def input = existing(params.input, 'input')
    if (!input.name.toLowerCase().endsWith('.csv')) {
        def name = input.name.replaceFirst(/(?i)(\.ome)?(\.zarr|\.tiff?|\.nii|\.nrrd|\.mha|\.mhd|\.npy)?(\.zip|\.gz)?$/, '')
        return [[sample: name, image: input]]
    }
    def columns = ['sample', 'image', 'mask', 'sections', 'voxel_um']
    def rows = input.splitCsv(header: true, strip: true)
    if (!rows) { error "sample sheet ${input.name} has no rows; give one line for each sample under a header" }
    def unknown = rows[0].keySet().findAll { column -> !columns.contains(column) }
    if (unknown || !rows[0].containsKey('sample') || !rows[0].containsKey('image')) {
        error "sample sheet ${input.name} has columns ${rows[0].keySet().join(', ')}; expected sample, image and, optionally, mask, sections, voxel_um"
    }
    def twice = rows.countBy { row -> row.sample }.find { _sample, count -> count > 1 }
    if (twice) { error "sample sheet ${input.name} names sample ${twice.key} in ${twice.value} rows; give every sample a name of its own" }
    return rows.collect { row -> row + [image: existing(row.image, 'image', row.sample, input.parent)] + [folder: input.parent] }
}

// The files of one sample: [meta, volume, image, mask, table]; mask and table are empty lists where not given.
def sample_files(row, params) {
    def sections = row.sections ?: params.sections
    def counted = sections.toString().isInteger()
    def table = counted ? [] : existing(sections, 'sections', row.sample, row.sections ? row.folder : null)
    def mask = row.mask ?: params.mask
    if (mask) { mask = existing(mask, 'mask', row.sample, row.mask ? row.folder : null) }
    def voxel_um = row.voxel_um ?: params.voxel_um
    def volume = [
        options: [voxel_um ? "--voxel-um '${voxel_um}'" : '', params.channel != null ? "--channel ${params.channel}" : ''].join(' ').trim(),
        sections: counted ? sections : null,
        digests: [row.image, mask].collect { path -> path ? digest(path) : null },
    ]
    return [[id: row.sample], volume, row.image, mask ?: [], table]
}

def existing(name, parameter, sample = null, folder = null) {
    def path = name instanceof java.nio.file.Path ? name : file(name.toString(), glob: false)
    if (folder != null && !name.toString().startsWith('/') && !name.toString().contains('://')) {
        path = folder.resolve(name.toString())
    }
    if (!path.exists()) {
        error "${sample ? "sample ${sample}: " : ''}parameter ${parameter}: ${name} does not exist; check the path"
    }
    return path
}
