//! Finds nvcc, compiles `kernels/*.cu` to PTX and embeds it; turns `kernels/tiles.cuh` into Rust tables. No network.
//!
//! Files in OUT_DIR: `<module>.ptx`, compressed as `<module>.ptx.z`, `ptx_modules.rs` (included by src/gpu/ptx.rs), `tiles.rs`
//! (by src/gpu/tiles.rs).

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

/// What is compiled: source, PTX target, and whether it is compiled once for each element type (and, Hopper's GEMM, for each of what
/// products end in).
const SOURCES: [(&str, &str, bool); 11] = [
    ("gemm_sm80", "compute_80", true),
    ("gemm_sm90", "compute_90a", true),
    ("attention_sm80", "compute_80", true),
    ("attention_sm90", "compute_90a", true),
    ("norm_sm80", "compute_80", true),
    ("norm_sm90", "compute_90a", true),
    ("rotary_sm80", "compute_80", true),
    ("rotary_sm90", "compute_90a", true),
    ("gate_sm80", "compute_80", true),
    ("embed_sm80", "compute_80", true),
    ("probe_sm80", "compute_80", false),
];
const HEADERS: [&str; 12] = [
    "ptx.cuh",
    "element.cuh",
    "activation.cuh",
    "counters.cuh",
    "tiles.cuh",
    "gemm_sm90_tile.cuh",
    "gemm_sm90_finish.cuh",
    "gemm_sm90_rotate.cuh",
    "norm.cuh",
    "norm_rows.cuh",
    "rotary.cuh",
    "rotation.cuh",
];
/// The element types: the macro's value in the kernels, the suffix of the module.
const ELEMENTS: [(&str, &str); 2] = [("Bf16", "bf16"), ("F16", "f16")];

/// What products of Hopper's GEMM end in: the macro's value in the kernels, the middle of the module's name.
const GEMM_SM90_ENDS: [(&str, &str); 6] = [
    ("LINEAR", "linear"),
    ("GELU", "gelu"),
    ("GELU_NEW", "gelu_new"),
    ("RELU", "relu"),
    ("SPLIT", "split"),
    ("SUMS", "sums"),
];

struct Module {
    name: String,
    target: &'static str,
    source: &'static str,
    /// Macros: name and value.
    macros: Vec<(&'static str, &'static str)>,
}

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    emit_git_revision();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let kernels = root.join("kernels");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for name in SOURCES.iter().map(|(name, ..)| format!("{name}.cu")).chain(HEADERS.map(String::from)) {
        println!("cargo::rerun-if-changed=kernels/{name}");
    }
    for variable in ["PAF_NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    fs::write(out.join("tiles.rs"), tiles(&fs::read_to_string(kernels.join("tiles.cuh"))?)?)?;

    // docs.rs has no nvcc: the documentation is built without kernels.
    if env::var_os("DOCS_RS").is_some() {
        return write_index(&out, &[], Path::new(""), (0, 0));
    }
    let nvcc = find_nvcc(&root)?;
    let version = toolkit_version(&nvcc)?;
    let modules = modules();
    thread::scope(|scope| {
        let jobs: Vec<_> =
            modules.iter().map(|module| scope.spawn(|| compile(&nvcc, &kernels, &out, module))).collect();
        jobs.into_iter().try_for_each(|job| job.join().map_err(|_| anyhow!("a compiling thread panicked"))?)
    })?;
    write_index(&out, &modules, &nvcc, version)
}

fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    for (source, target, per_element) in SOURCES {
        let whole = Module { name: source.to_owned(), target, source, macros: Vec::new() };
        let with = |module: &Module, name, value, suffix| {
            let macros = [module.macros.as_slice(), &[(name, value)]].concat();
            Module { name: format!("{}_{suffix}", module.name), macros, ..*module }
        };
        let ends = match source {
            "gemm_sm90" => GEMM_SM90_ENDS.map(|(value, suffix)| with(&whole, "PAF_ENDS", value, suffix)).into(),
            _ => vec![whole],
        };
        match per_element {
            true => modules.extend(
                ends.iter()
                    .flat_map(|module| ELEMENTS.map(|(value, suffix)| with(module, "PAF_ELEMENT", value, suffix))),
            ),
            false => modules.extend(ends),
        }
    }
    modules
}

fn compile(nvcc: &Path, kernels: &Path, out: &Path, module: &Module) -> Result<()> {
    let mut command = Command::new(nvcc);
    command
        .args(["-std=c++17", "-O3", "-ptx", "--Werror=all-warnings"])
        .arg(format!("-gencode=arch={0},code={0}", module.target))
        .args(module.macros.iter().map(|(name, value)| format!("-D{name}={value}")))
        .arg(kernels.join(module.source).with_extension("cu"))
        .arg("-o")
        .arg(out.join(&module.name).with_extension("ptx"));
    let output = command.output().with_context(|| format!("could not run {}", nvcc.display()))?;
    if !output.status.success() {
        bail!(
            "{} failed on kernels/{}.cu:\n{}{}",
            nvcc.display(),
            module.source,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = fs::read(out.join(&module.name).with_extension("ptx"))?;
    Ok(fs::write(compressed(out, &module.name), miniz_oxide::deflate::compress_to_vec_zlib(&text, 9))?)
}

fn compressed(out: &Path, name: &str) -> PathBuf {
    out.join(name).with_extension("ptx.z")
}

fn write_index(out: &Path, modules: &[Module], nvcc: &Path, (major, minor): (u32, u32)) -> Result<()> {
    let mut index = String::new();
    writeln!(index, "pub const TOOLKIT_VERSION: (u32, u32) = ({major}, {minor});")?;
    writeln!(index, "pub const NVCC: &str = {:?};", nvcc.display().to_string())?;
    writeln!(index, "pub static MODULES: &[PtxModule] = &[")?;
    for Module { name, target, .. } in modules {
        writeln!(
            index,
            "    PtxModule {{ name: {name:?}, target: {target:?}, compressed: include_bytes!({:?}) }},",
            compressed(out, name).display().to_string()
        )?;
    }
    writeln!(index, "];")?;
    Ok(fs::write(out.join("ptx_modules.rs"), index)?)
}

/// Looks where DESIGN's users have it: an explicit choice first, the project's own copy last.
fn find_nvcc(root: &Path) -> Result<PathBuf> {
    if let Some(path) = env::var_os("PAF_NVCC").map(PathBuf::from) {
        if !path.is_file() {
            bail!("PAF_NVCC = {} is no file", path.display());
        }
        return Ok(path);
    }
    let homes =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/cuda/bin", "/opt/cuda/bin", "/usr/lib/cuda/bin"].map(PathBuf::from);
    homes
        .chain(env::split_paths(&path))
        .chain(usual)
        .chain(toolkit_bins(root))
        .map(|bin| bin.join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .context(
            "no nvcc found: set PAF_NVCC or CUDA_HOME, put nvcc on PATH, or run `make toolkit` to install it into \
             .toolkit/; to build the CPU library only, use --no-default-features",
        )
}

/// `bin` folders of the wheels that `make toolkit` installs.
fn toolkit_bins(root: &Path) -> Vec<PathBuf> {
    let subfolders = |folder: PathBuf| -> Vec<PathBuf> {
        fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
    };
    subfolders(root.join(".toolkit/lib"))
        .into_iter()
        .flat_map(|python| subfolders(python.join("site-packages/nvidia")))
        .map(|cuda| cuda.join("bin"))
        .collect()
}

fn toolkit_version(nvcc: &Path) -> Result<(u32, u32)> {
    let output =
        Command::new(nvcc).arg("--version").output().with_context(|| format!("could not run {}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    release
        .and_then(|release| release.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .with_context(|| format!("{} --version names no release:\n{text}", nvcc.display()))
}

/// The `X(…)` rows of tiles.cuh as Rust tables, so that host and device read one list.
fn tiles(header: &str) -> Result<String> {
    let mut tables = String::new();
    for line in header.lines() {
        let Some((name, value)) = line.strip_prefix("constexpr int ").and_then(|line| line.split_once(" = ")) else {
            continue;
        };
        let value: usize = value.split(';').next().unwrap_or_default().parse().with_context(|| line.to_owned())?;
        writeln!(
            tables,
            "#[allow(dead_code, reason = \"some are for tests\")]\npub(crate) const {name}: usize = {value};"
        )?;
    }
    for (table, row_type) in [
        ("GEMM_SM80_TILES", "Sm80GemmTile"),
        ("GEMM_SM90_TILES", "Sm90GemmTile"),
        ("ATTENTION_TILES", "AttentionTile"),
        ("ATTENTION_SM90_TILES", "Sm90AttentionTile"),
    ] {
        let body = header
            .split(&format!("#define {table}(X)"))
            .nth(1)
            .with_context(|| format!("tiles.cuh defines no {table}"))?;
        let mut rows = String::new();
        let mut count = 0;
        // Rows start with `X(`; comments may follow a row and continue on the next line.
        for line in body.lines().skip(1).map(str::trim) {
            let Some(row) = line.strip_prefix("X(") else {
                if line.ends_with('\\') || line.ends_with("*/") {
                    continue;
                }
                break;
            };
            let fields: Vec<_> = row.split(')').next().unwrap_or_default().split(',').map(str::trim).collect();
            match (row_type, fields.as_slice()) {
                ("Sm80GemmTile", [name, m, n, warp_m, warp_n, slices, stages]) => writeln!(
                    rows,
                    "    Sm80GemmTile {{ name: {name:?}, m: {m}, n: {n}, warp_m: {warp_m}, warp_n: {warp_n}, slices: {slices}, \
                     stages: {stages} }},"
                )?,
                ("Sm90GemmTile", [name, m, n, free, work, panels, chunk, buffers]) => writeln!(
                    rows,
                    "    Sm90GemmTile {{ name: {name:?}, m: {m}, n: {n}, free: Free::{free}, in_turn: {}, half: {}, panels: {panels}, chunk: {chunk}, buffers: {buffers} }},",
                    *work == "IN_TURN",
                    *work == "HALF"
                )?,
                ("AttentionTile", [head_dim, warps, warp_rows, keys]) => writeln!(
                    rows,
                    "    AttentionTile {{ head_dim: {head_dim}, warps: {warps}, warp_rows: {warp_rows}, keys: {keys} }},"
                )?,
                ("Sm90AttentionTile", [name, head_dim, warpgroups, keys, stages, blocks]) => writeln!(
                    rows,
                    "    Sm90AttentionTile {{ name: {name:?}, head_dim: {head_dim}, warpgroups: {warpgroups}, keys: {keys}, \
                     stages: {stages}, blocks: {blocks} }},"
                )?,
                _ => bail!("tiles.cuh: {table} has a row with other fields: {line}"),
            }
            count += 1;
        }
        if count == 0 {
            bail!("tiles.cuh: {table} has no rows");
        }
        writeln!(tables, "pub(crate) const {table}: [{row_type}; {count}] = [\n{rows}];")?;
    }
    Ok(tables)
}

/// The commit that result files name; absent outside a git checkout.
fn emit_git_revision() {
    let git = |args: &[&str]| -> Option<String> {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    let Some(revision) = git(&["rev-parse", "HEAD"]) else { return };
    let dirty = git(&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"])
        .is_some_and(|changes| !changes.is_empty());
    println!("cargo::rustc-env=PAF_GIT_REVISION={revision}{}", if dirty { "+changes" } else { "" });
    for name in ["HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}
