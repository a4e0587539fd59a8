//! The C ABI from outside: its header, what repeats it, and a C program that links with it both ways.

use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn generated() -> String {
    let root = Path::new(ROOT);
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is a configuration");
    let files = [
        "ffi.rs",
        "ffi/status.rs",
        "ffi/handle.rs",
        "ffi/structs.rs",
        "ffi/device.rs",
        "ffi/encoder.rs",
        "ffi/kernels.rs",
    ];
    let builder = files.into_iter().fold(cbindgen::Builder::new().with_config(config), |builder, file| {
        builder.with_src(root.join("src").join(file))
    });
    let mut header = Vec::new();
    builder.generate().expect("src/ffi makes a header").write(&mut header);
    String::from_utf8(header).expect("a header is text")
}

/// With `PAF_WRITE_HEADER` set, this is what writes it.
#[test]
fn the_header_is_what_the_sources_say() {
    let path = Path::new(ROOT).join("include/paf.h");
    let made = generated();
    if std::env::var_os("PAF_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&path).expect("include/paf.h is there");
    assert!(committed == made, "include/paf.h is not what src/ffi says: run `make header`");
    let functions = made.matches("\nPafStatus paf_").count();
    assert!(functions >= 15, "only {functions} functions are declared");
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"];

#[test]
fn the_header_is_c11_and_cpp17_without_warnings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (compiler, standard, name) in [("cc", "-std=c11", "alone.c"), ("c++", "-std=c++17", "alone.cpp")] {
        let source = folder.path().join(name);
        // Twice, since the second time has to be nothing.
        std::fs::write(&source, "#include <paf.h>\n#include <paf.h>\nint main(void) { return (int)PAF_STATUS_OK; }\n")
            .expect("a file can be written");
        run(Command::new(compiler)
            .args([standard, "-fsyntax-only", "-I"])
            .arg(Path::new(ROOT).join("include"))
            .args(STRICT)
            .arg(&source));
    }
}

/// The structs and numbers that examples/pytorch.py repeats, as C that compiles if they are the header's.
const ASSERTIONS: &str = r##"
import ctypes, pytorch
print("#include <paf.h>")
for struct in (pytorch.EncoderConfig, pytorch.LayerWeights, pytorch.Batch, pytorch.Forward):
    c = "Paf" + struct.__name__
    print(f'_Static_assert(sizeof({c}) == {ctypes.sizeof(struct)}, "{c}");')
    for name, _ in struct._fields_:
        at = getattr(struct, name)
        print(f'_Static_assert(offsetof({c}, {name}) == {at.offset} && sizeof((({c} *)0)->{name}) == {at.size}, "{c}.{name}");')
for name, value in (("PAF_ABI_VERSION", pytorch.ABI_VERSION), ("PAF_DTYPE_BF16", pytorch.BF16), ("PAF_HIDDEN_ACT_GELU", pytorch.GELU),
                    ("PAF_DESIGN_PAF_POST_NORM", pytorch.PAF_POST_NORM), ("PAF_MEMORY_DEVICE", pytorch.DEVICE_MEMORY)):
    print(f'_Static_assert({name} == {value}, "{name}");')
"##;

#[test]
fn the_pytorch_example_has_the_headers_structs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // In place of torch, which the structs do not need.
    let stub = folder.path().join("torch/nn");
    std::fs::create_dir_all(&stub).expect("a folder can be made");
    for file in ["../__init__.py", "__init__.py", "functional.py"] {
        std::fs::write(stub.join(file), "").expect("a file can be written");
    }
    let (root, source) = (Path::new(ROOT), folder.path().join("assertions.c"));
    let path = std::env::join_paths([folder.path(), &root.join("examples")]).expect("folders make a path");
    let mut python = Command::new("python3");
    let assertions = run(python.args(["-B", "-c", ASSERTIONS]).env("PYTHONPATH", path));
    assert!(assertions.matches("offsetof").count() > 40, "{assertions}");
    std::fs::write(&source, assertions).expect("a file can be written");
    run(Command::new("cc").args(["-std=c11", "-fsyntax-only", "-I"]).arg(root.join("include")).arg(&source));
}

/// What cargo has built of the library beside this test.
fn library(prefix: &str, suffix: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let folder = test.parent().expect("a test is in a folder");
    let files = std::fs::read_dir(folder).expect("the test's folder can be read").flatten().map(|entry| entry.path());
    let of_library = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    // Of several builds, with other features, the last.
    let modified = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    files
        .filter(of_library)
        .max_by_key(modified)
        .unwrap_or_else(|| panic!("no {prefix}*{suffix} in {}", folder.display()))
}

/// Compiles tests/c/statuses.c and runs it: it checks what calls come to that a machine can make whatever it has.
fn statuses(name: &str, link: &[&std::ffi::OsStr]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join(name);
    let (root, source) = (Path::new(ROOT), Path::new(ROOT).join("tests/c/statuses.c"));
    run(Command::new("cc")
        .args(["-std=c11", "-O1", "-I"])
        .arg(root.join("include"))
        .args(STRICT)
        .arg(source)
        .arg("-o")
        .arg(&program)
        .args(link));
    let said = run(Command::new(&program).env("RUST_BACKTRACE", "0"));
    assert!(said.contains("all statuses are as documented"), "{said}");
}

#[test]
fn a_c_program_links_with_the_shared_library() {
    let library = library("libpaf_cuda", ".so");
    let folder = library.parent().expect("a library is in a folder");
    let mut search = std::ffi::OsString::from("-Wl,-rpath,");
    search.push(folder);
    statuses("shared", &["-L".as_ref(), folder.as_os_str(), "-lpaf_cuda".as_ref(), &search]);
    // Nothing else of the library is anybody's to call.
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let names: Vec<_> = symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert!(names.contains(&"paf_encoder_forward"), "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("paf_")), "{names:?}");
}

#[test]
fn a_c_program_links_with_the_static_library() {
    let library = library("libpaf_cuda", ".a");
    let system = ["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"].map(std::ffi::OsStr::new);
    statuses("static", &[&[library.as_os_str()], &system[..]].concat());
}
