//! The README's tables and pictures are what `paf report` makes of the result files that they name.
#![cfg(feature = "cli")]

use std::process::Command;

#[test]
fn tables_match_their_result_files() {
    let readme = include_str!("../README.md");
    let mut tables = 0;
    for part in readme.split("<!-- table: ").skip(1) {
        let (file, rest) = part.split_once(" -->\n").expect("a table names its file");
        let (table, _) = rest.split_once("<!-- end of table -->").expect("a table ends");
        let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let output = Command::new(env!("CARGO_BIN_EXE_paf")).args(["report", &path]).output().expect("paf starts");
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        let made = String::from_utf8(output.stdout).expect("paf writes UTF-8");
        assert_eq!(table.trim(), made.trim(), "run `paf report {file}` and put its table there");
        tables += 1;
    }
    assert!(tables > 0);
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
