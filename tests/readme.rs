//! The README's tables and pictures are what `paf report` makes of the result files that they name.
#![cfg(feature = "cli")]

use std::process::Command;

/// Documents with tables.
const DOCUMENTS: [(&str, &str); 2] = [
    ("README.md", include_str!("../README.md")),
    ("benches/results/README.md", include_str!("../benches/results/README.md")),
];

#[test]
fn tables_match_their_result_files() {
    for (document, text) in DOCUMENTS {
        let mut tables = 0;
        // In words: `table: FILE`, what `paf report FILE` prints; `summary: FILE`, what it prints with --summary.
        for (name, options) in [("table", None), ("summary", Some("--summary"))] {
            for part in text.split(&format!("<!-- {name}: ")).skip(1) {
                let (file, rest) = part.split_once(" -->\n").expect("a table names its file");
                let (table, _) = rest.split_once("<!-- end of table -->").expect("a table ends");
                let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
                let mut command = Command::new(env!("CARGO_BIN_EXE_paf"));
                let output = command.arg("report").args(options).arg(&path).output().expect("paf starts");
                assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
                let made = String::from_utf8(output.stdout).expect("paf writes UTF-8");
                let options = options.unwrap_or_default();
                assert_eq!(table.trim(), made.trim(), "put into {document} what `paf report {options} {file}` prints");
                tables += 1;
            }
        }
        assert!(tables > 0, "{document} has no tables");
    }
}

/// Who looks at a folder of files wants to know of each what it is.
#[test]
fn every_result_file_is_described() {
    let folder = format!("{}/benches/results", env!("CARGO_MANIFEST_DIR"));
    let (_, text) = DOCUMENTS[1];
    let described: String = text.lines().filter(|line| line.starts_with("| `")).collect();
    for entry in std::fs::read_dir(folder).expect("there are results") {
        let name = entry.expect("a folder can be read").file_name().into_string().expect("names are UTF-8");
        let is_there = name == "README.md" || described.contains(&format!("`{name}`"));
        assert!(is_there, "benches/results/README.md does not say what {name} is");
    }
}

#[test]
fn pictures_match_their_result_files() {
    let readme = include_str!("../README.md");
    let mut pictures = 0;
    for line in readme.lines().filter(|line| line.starts_with("paf report ") && line.ends_with(".svg")) {
        let (arguments, picture) = line.rsplit_once(' ').expect("the command ends with the picture");
        assert!(readme.contains(&format!("]({picture})")), "{picture} is made, but not shown");
        let output = Command::new(env!("CARGO_BIN_EXE_paf"))
            .args(arguments.split(' ').skip(1).chain(["-"]))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("paf starts");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let committed =
            std::fs::read(format!("{}/{picture}", env!("CARGO_MANIFEST_DIR"))).expect("the picture is there");
        assert!(output.stdout == committed, "{picture} is not what its result files say: run `{line}`");
        pictures += 1;
    }
    assert!(pictures > 0);
}
