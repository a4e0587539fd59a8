//! CUPTI, NVIDIA's profiling library, where it is installed: when each kernel ran, by the device's clock. It is loaded when
//! [`Cupti::load`] asks for it; nothing else in this crate needs it.
//!
//! Records are read as far as all versions from CUDA 12 on lay them out alike. A library is looked for here, not by cudarc, which
//! panics where there is none and knows no newer one than the CUDA that it was built for.

use std::alloc::{Layout, alloc, dealloc};
use std::error::Error as _;
use std::ffi::{CStr, OsString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr::{addr_of, null, null_mut};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::cupti::sys::{CUpti_Activity, CUpti_ActivityKernel9, CUpti_ActivityKind};
use cudarc::driver::sys::CUcontext;
use libloading::Library;

use super::device::Device;
use crate::error::{Error, Result};

/// When and how a kernel ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name in its module.
    pub name: String,
    /// When its first block began, ns.
    pub start_ns: u64,
    /// When its last block had ended, ns.
    pub end_ns: u64,
    /// Number that CUPTI gives the stream.
    pub stream: u32,
    /// Number of the call that launched it: in the order of the calls.
    pub correlation: u32,
    /// Number of its node, if a graph launched it.
    pub graph_node: u64,
    /// Blocks along x and y.
    pub grid: [usize; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block that the launch asked for, bytes.
    pub shared_bytes: u32,
}

/// Where the library is: a file or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// A file, or a folder that has one of the library's names in it.
    ///
    /// # Safety
    /// It is NVIDIA's library, or none: loading a library runs what is in it, and calls what it has under CUPTI's names.
    pub unsafe fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

/// The library.
#[derive(Debug, Clone)]
pub struct Cupti {
    functions: &'static Functions,
}

/// Status codes and kinds are enums of C, whose values may be newer than any enum here.
type Status = u32;
type Kind = u32;
type Request = unsafe extern "C" fn(*mut *mut u8, *mut usize, *mut usize);
type Complete = unsafe extern "C" fn(CUcontext, u32, *mut u8, usize, usize);

#[derive(Debug)]
struct Functions {
    path: PathBuf,
    version: u32,
    register: unsafe extern "C" fn(Request, Complete) -> Status,
    enable: unsafe extern "C" fn(Kind) -> Status,
    disable: unsafe extern "C" fn(Kind) -> Status,
    flush_all: unsafe extern "C" fn(u32) -> Status,
    next_record: unsafe extern "C" fn(*mut u8, usize, *mut *mut CUpti_Activity) -> Status,
    dropped: unsafe extern "C" fn(CUcontext, u32, *mut usize) -> Status,
    text: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
    /// The functions are in it.
    _library: Library,
}

/// Kernels that may run at the same time: tracing the other kind lets none.
const KERNELS: Kind = CUpti_ActivityKind::CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL as Kind;
/// Also buffers that are not full.
const FLUSH_FORCED: u32 = 1;
/// That of CUDA 11.8 to 12.1, from which on records begin as [`CUpti_ActivityKernel9`] does, as far as they are read.
const OLDEST_VERSION: u32 = 18;
const NAMES: [&str; 3] = ["libcupti.so", "libcupti.so.13", "libcupti.so.12"];
const BUFFER: Layout = match Layout::from_size_align(1 << 20, 8) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// It stays loaded, since it may call back as long as the process lives.
static LOADED: OnceLock<Functions> = OnceLock::new();
static RECORDS: Mutex<Vec<Record>> = Mutex::new(Vec::new());
static SESSION: Mutex<()> = Mutex::new(());

/// What is guarded stays whole whatever panics.
fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where it may be: what is named, a file or a folder, or else the loader's places, and those of CUDA installations.
fn places(named: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return if named.is_dir() { NAMES.map(|name| named.join(name)).to_vec() } else { vec![named.to_owned()] };
    }
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(PathBuf::from);
    let roots = roots.chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    let folders = roots.flat_map(|root| ["extras/CUPTI/lib64", "lib64"].map(|folder| root.join(folder)));
    let in_folders = folders.flat_map(|folder| NAMES.map(|name| folder.join(name)));
    NAMES.map(PathBuf::from).into_iter().chain(in_folders).collect()
}

impl Functions {
    /// # Safety
    /// As for [`Place::new`].
    unsafe fn load(path: &Path) -> Result<Self, String> {
        // Of the two, the cause says which file, and what is wrong with it.
        let text =
            |error: libloading::Error| error.source().map_or_else(|| error.to_string(), |cause| cause.to_string());
        // SAFETY: the caller's promise: it does what NVIDIA's library does when it is loaded.
        let library = unsafe { Library::new(path) }.map_err(text)?;
        /// # Safety
        /// `T` is the function's type.
        unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
            // SAFETY: the caller's promise, passed on.
            unsafe { library.get(name.as_bytes()) }.map(|symbol| *symbol).map_err(|error| error.to_string())
        }
        // SAFETY: types as documented, with enums as the integers that they are; one u32 is written.
        unsafe {
            let get_version: unsafe extern "C" fn(*mut u32) -> Status = symbol(&library, "cuptiGetVersion")?;
            let mut version = 0;
            let status = get_version(&mut version);
            if status != 0 {
                return Err(format!("cuptiGetVersion gives status {status}"));
            }
            if version < OLDEST_VERSION {
                return Err(format!("version {version}, {OLDEST_VERSION} (CUDA 11.8) or newer is needed"));
            }
            Ok(Self {
                path: path.to_owned(),
                version,
                register: symbol(&library, "cuptiActivityRegisterCallbacks")?,
                enable: symbol(&library, "cuptiActivityEnable")?,
                disable: symbol(&library, "cuptiActivityDisable")?,
                flush_all: symbol(&library, "cuptiActivityFlushAll")?,
                next_record: symbol(&library, "cuptiActivityGetNextRecord")?,
                dropped: symbol(&library, "cuptiActivityGetNumDroppedRecords")?,
                text: symbol(&library, "cuptiGetResultString")?,
                _library: library,
            })
        }
    }

    fn check(&self, operation: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: a pointer to static text is written, or nothing.
        let text = unsafe {
            (self.text)(status, &mut text);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(Error::Cuda { operation, code: status, text: format!("CUPTI: {text}") })
    }
}

impl Cupti {
    /// Loads the library: `named`, a file or a folder; or else one that the loader finds by its name, or that lies in `CUDA_HOME`,
    /// `CUDA_PATH` or the usual folders. The first that is loaded stays.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if there is none of CUDA 12 or newer, with the places.
    pub fn load(named: Option<&Place>) -> Result<Self> {
        if let Some(functions) = LOADED.get() {
            return Ok(Self { functions });
        }
        let mut failures = Vec::new();
        for place in places(named.map(|Place(path)| path.as_path()), |name| std::env::var_os(name)) {
            // SAFETY: what is named is promised to be the library; elsewhere that is what lies under its names in CUDA's folders.
            match unsafe { Functions::load(&place) } {
                Ok(functions) => return Ok(Self { functions: LOADED.get_or_init(|| functions) }),
                Err(text) => failures.push(format!("{}: {text}", place.display())),
            }
        }
        let shown = if named.is_some() { failures.join("; ") } else { format!("not found as {}", NAMES.join(", ")) };
        Err(Error::Unsupported {
            what: format!("tracing with CUPTI ({shown})"),
            remedy: "name libcupti.so, of CUDA 12 or newer, or take times from events".into(),
        })
    }

    /// The file's name, and the version of its interface.
    pub fn version(&self) -> String {
        let name = self.functions.path.file_name().unwrap_or(self.functions.path.as_os_str());
        format!("{} (version {})", name.display(), self.functions.version)
    }

    /// Begins to record kernels of all contexts. There is one session at a time; a second one waits.
    ///
    /// # Errors
    /// [`Error::Cuda`] with CUPTI's word for it, for instance where another profiler has the device.
    pub fn begin(&self) -> Result<Session> {
        let guard = lock(&SESSION);
        let functions = self.functions;
        // SAFETY: both functions do as CUPTI asks of them.
        functions.check("registering with CUPTI", unsafe { (functions.register)(requested, completed) })?;
        // What ran on when an earlier session ended is none of this one's.
        // SAFETY: takes a number.
        functions.check("clearing a trace", unsafe { (functions.flush_all)(FLUSH_FORCED) })?;
        lock(&RECORDS).clear();
        // SAFETY: takes a number.
        functions.check("beginning to trace", unsafe { (functions.enable)(KERNELS) })?;
        Ok(Session { functions, _alone: guard })
    }
}

/// Kernels are recorded for as long as it lives.
#[derive(Debug)]
pub struct Session {
    functions: &'static Functions,
    _alone: MutexGuard<'static, ()>,
}

impl Session {
    /// What has run since the session began, or since the last call, in the order of the starts. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::ContextLost`]; [`Error::Verification`] if CUPTI has lost records.
    pub fn take(&self, device: &Device) -> Result<Vec<Record>> {
        device.synchronize()?;
        // SAFETY: takes a number.
        self.functions.check("reading a trace", unsafe { (self.functions.flush_all)(FLUSH_FORCED) })?;
        let mut dropped = 0;
        // SAFETY: of no context in particular; one number is written.
        let counted = unsafe { (self.functions.dropped)(null_mut(), 0, &mut dropped) };
        self.functions.check("counting lost records", counted)?;
        let mut records = std::mem::take(&mut *lock(&RECORDS));
        if dropped > 0 {
            return Err(Error::Verification(format!("CUPTI has lost {dropped} records: trace fewer layers")));
        }
        records.sort_by_key(|record| record.start_ns);
        Ok(records)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: takes numbers. What goes wrong here hurts nobody any more.
        unsafe {
            (self.functions.disable)(KERNELS);
            (self.functions.flush_all)(FLUSH_FORCED);
        }
        lock(&RECORDS).clear();
    }
}

/// CUPTI asks for room.
unsafe extern "C" fn requested(buffer: *mut *mut u8, size: *mut usize, most: *mut usize) {
    // SAFETY: CUPTI gives three places to write to; the layout has a size. 0 means as many records as there is room for.
    unsafe {
        let room = alloc(BUFFER);
        *buffer = room;
        *size = if room.is_null() { 0 } else { BUFFER.size() };
        *most = 0;
    }
}

/// CUPTI gives it back, with records.
unsafe extern "C" fn completed(_: CUcontext, _: u32, buffer: *mut u8, _: usize, valid: usize) {
    if buffer.is_null() {
        return;
    }
    if let Some(functions) = LOADED.get() {
        let (mut record, mut found) = (null_mut(), Vec::new());
        // SAFETY: the first `valid` bytes of the buffer hold records, which stay as they are until it is freed.
        unsafe {
            while (functions.next_record)(buffer, valid, &mut record) == 0 {
                found.extend(read(record));
            }
        }
        lock(&RECORDS).extend(found);
    }
    // SAFETY: made in `requested`, given back once.
    unsafe { dealloc(buffer, BUFFER) };
}

/// A record, if it is one of a kernel.
///
/// # Safety
/// It is one of CUPTI's, and as long as its kind says.
unsafe fn read(record: *const CUpti_Activity) -> Option<Record> {
    // SAFETY: every record begins with its kind. Read as a number, which may be of a kind that has no name here.
    if unsafe { record.cast::<Kind>().read_unaligned() } != KERNELS {
        return None;
    }
    let record = record.cast::<CUpti_ActivityKernel9>();
    macro_rules! field {
        ($name:ident) => {
            // SAFETY: the field is there, see the module's documentation; no reference to it is made, since records are packed.
            unsafe { addr_of!((*record).$name).read_unaligned() }
        };
    }
    let name = field!(name);
    // SAFETY: CUPTI's text, which lives as long as the module.
    let name = if name.is_null() { "".into() } else { unsafe { CStr::from_ptr(name) }.to_string_lossy() };
    let count = |number: c_int| usize::try_from(number).unwrap_or(0);
    Some(Record {
        name: name.into_owned(),
        start_ns: field!(start),
        end_ns: field!(end),
        stream: field!(streamId),
        correlation: field!(correlationId),
        graph_node: field!(graphNodeId),
        grid: [count(field!(gridX)), count(field!(gridY))],
        threads: field!(blockX).unsigned_abs(),
        shared_bytes: field!(dynamicSharedMemory).unsigned_abs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installations_are_looked_through_unless_a_place_is_named() {
        let variable = |name: &str| (name == "CUDA_HOME").then(|| OsString::from("/cuda"));
        let found = places(None, variable);
        assert_eq!(found[..3], NAMES.map(PathBuf::from));
        assert_eq!(found[3], Path::new("/cuda/extras/CUPTI/lib64/libcupti.so"));
        assert!(found.contains(&"/usr/local/cuda/extras/CUPTI/lib64/libcupti.so.13".into()), "{found:?}");
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(places(Some(folder.path()), variable)[1], folder.path().join("libcupti.so.13"));
        assert_eq!(places(Some(Path::new("/x/libcupti.so")), variable), [PathBuf::from("/x/libcupti.so")]);
    }

    #[test]
    fn what_is_no_library_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libcupti.so");
        std::fs::write(&path, "not a library").unwrap();
        // SAFETY: these are no libraries.
        let load = |path: &Path| unsafe { Functions::load(path) };
        let error = load(&path).err().unwrap();
        assert!(error.contains("libcupti.so"), "{error}");
        let missing = load(&folder.path().join("libcupti.so.13")).err().unwrap();
        assert!(missing.contains("libcupti.so.13"), "{missing}");
    }

    #[test]
    fn kernel_records_are_read_and_others_left() {
        // SAFETY: all of its fields may be 0.
        let mut record: CUpti_ActivityKernel9 = unsafe { std::mem::zeroed() };
        record.kind = CUpti_ActivityKind::CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
        (record.start, record.end, record.streamId, record.correlationId) = (1_000, 1_500, 7, 42);
        (record.gridX, record.gridY, record.blockX, record.dynamicSharedMemory) = (132, 2, 384, 200_000);
        (record.graphNodeId, record.name) = (9, c"gemm_128x128".as_ptr());
        let read_back = |record: &CUpti_ActivityKernel9| {
            // SAFETY: it is a whole record.
            unsafe { read(std::ptr::from_ref(record).cast()) }
        };
        let expected = Record {
            name: "gemm_128x128".into(),
            start_ns: 1_000,
            end_ns: 1_500,
            stream: 7,
            correlation: 42,
            graph_node: 9,
            grid: [132, 2],
            threads: 384,
            shared_bytes: 200_000,
        };
        assert_eq!(read_back(&record), Some(expected));
        record.kind = CUpti_ActivityKind::CUPTI_ACTIVITY_KIND_MEMCPY;
        assert_eq!(read_back(&record), None);
    }
}
