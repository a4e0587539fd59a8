//! The README's tables are what `paf report` makes of the result files that they name.
#![cfg(feature = "cli")]

use paf_cuda::measure::report::Report;

#[test]
fn tables_match_their_result_files() {
    let readme = include_str!("../README.md");
    let mut tables = 0;
    for part in readme.split("<!-- table: ").skip(1) {
        let (file, rest) = part.split_once(" -->\n").expect("a table names its file");
        let (table, _) = rest.split_once("<!-- end of table -->").expect("a table ends");
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let report: Report = serde_json::from_str(&text).expect("a result file parses");
        assert_eq!(table.trim(), report.markdown().trim(), "run `paf report {file}` and put its table there");
        tables += 1;
    }
    assert!(tables > 0);
}
