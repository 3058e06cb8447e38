// `gather`, which works on channels, as a workflow that a test can call.
include { gather } from '../../modules/channels'

workflow GATHERED {
    take:
    samples
    made

    main:
    gathered = gather(samples, 'recipe', made, 'slabs')

    emit:
    gathered
}
