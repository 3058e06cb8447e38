// What is known of a sample, from its files and the settings.

include { address; digest; located } from './paths'
include { wrong_name } from './rules'

// A sample of its files, which are named as the columns of a sample sheet; what is not among them is the setting of that name. In
// a sample, `volume` is what commands are told of it and what -resume must notice, `seen` the digests of its files by path, image
// to flat are its files or [], and to the lists stages add the files that they make. INSPECT adds its plan, and slabs_of and
// batches_of the part that one task works on.
def sample_of(name, files, settings) {
    wrong_name(name)?.with { sentence -> error sentence }
    def given = ['image', 'mask', 'flat_field', 'sections', 'voxel_um', 'channel'].collectEntries { field ->
        [field, files[field] in [null, ''] ? settings[field] : files[field]]
    }
    def counted = given.sections.toString().isInteger()
    def (image, mask, flat, table) = ['image', 'mask', 'flat_field', 'sections'].collect { field ->
        !given[field] || field == 'sections' && counted || field == 'image' && address(given.image) ? [] : located(given[field], null)
    }
    def seen = [image, mask, flat].findAll().collectEntries { path -> [(path): digest(path)] }
    def volume = [
        options: [given.voxel_um ? "--voxel-um '${given.voxel_um}'" : '', given.channel != null ? "--channel '${given.channel}'" : '',
            settings.axes ? "--axes ${settings.axes}" : '', settings.mask_label != null ? "--mask-label ${settings.mask_label}" : '',
            settings.allow_missing_chunks ? '--allow-missing-chunks' : '', settings.allow_missing_planes ? '--allow-missing-planes' : ''].findAll().join(' '),
        pattern: files.planes ? "/'${files.planes}'" : null,  // of files in the folder that is staged,
        mask_pattern: files.mask_planes ? "/'${files.mask_planes}'" : null,  // and in that of the mask
        address: address(given.image),  // where image is []
        sections: counted ? given.sections : null,
        version: own_version(),  // results of another version are not taken over
        digests: seen.values().toList(),
    ]
    return [
        volume: volume, seen: seen, image: image, mask: mask, table: table, flat: flat,
        shrunken: [], masks: [], histograms: [], recipe: [], evidence: [], slabs: [],
    ]
}

// The version of this checkout, which another pipeline may run as a part.
def own_version() {
    return file("${moduleDir}/../nextflow.config").text.find(/(?m)^ +version += '(.+)'$/) { _line, version -> version }
}
