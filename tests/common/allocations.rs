//! An allocator that remembers what each thread asks it for, to see that no number in a file becomes memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Watching;

/// Bytes that a thread has asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocations {
    /// In a single allocation, at most.
    pub largest: usize,
    /// Altogether at the same time, at most, counted from [`start`] on.
    pub peak: usize,
    live: usize,
}

thread_local! {
    static ALLOCATIONS: Cell<Allocations> = const { Cell::new(Allocations { largest: 0, peak: 0, live: 0 }) };
}

fn count(change: impl FnOnce(&mut Allocations)) {
    // At a thread's end there is nothing to count in.
    let _ = ALLOCATIONS.try_with(|cell| {
        let mut allocations = cell.get();
        change(&mut allocations);
        cell.set(allocations);
    });
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|allocations| {
            allocations.largest = allocations.largest.max(layout.size());
            allocations.live = allocations.live.saturating_add(layout.size());
            allocations.peak = allocations.peak.max(allocations.live);
        });
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // What was there before `start` may be freed after it.
        count(|allocations| allocations.live = allocations.live.saturating_sub(layout.size()));
        // SAFETY: the caller keeps `dealloc`'s contract, and the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Begins to count on this thread.
pub fn start() {
    ALLOCATIONS.set(Allocations::default());
}

/// What this thread has asked for since then.
pub fn since_start() -> Allocations {
    ALLOCATIONS.get()
}
