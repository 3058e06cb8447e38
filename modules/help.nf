// `--help`, from the schema.

include { expectation; read_schema } from './rules'

// End the run with what was asked for, if anything was.
def answer_help(given) {
    def asked = ['help', 'help_all', 'version'].findAll { name -> given.containsKey(name) && given[name] }
    if (asked) { exit(0, asked == ['version'] ? "n4flow ${workflow.manifest.version}" : help('help_all' in asked)) }
}

// What `--help` shows, and `--help_all` with what few need.
def help(all) {
    def lines = ['nextflow run . --input VOLUME|SHEET|phantom [--outdir results] [-profile gpu,slurm,apptainer] [--PARAMETER VALUE]']
    read_schema()['$defs'].values().each { group ->
        def shown = group.properties.findAll { _name, rule -> all || !rule.hidden }
        if (shown) { lines << "\n${group.title}: ${group.description}".toString() }
        shown.each { name, rule ->
            def usual = rule.containsKey('usual') ? rule.usual : rule['default']
            def words = usual == null || usual == '' ? expectation(rule) : "${expectation(rule)}; ${usual}"
            lines << "  --${name.padRight(21)} ${rule.description} [${words}]".toString()
        }
    }
    return (all ? lines : lines + ['', '--help_all shows every parameter; profiles are in nextflow.config']).join('\n')
}
