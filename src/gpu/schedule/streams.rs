//! The streams of a schedule: who forks from whom, who joins whom, and where a kernel may begin before the one before it has ended.

use std::cell::Cell;

use crate::error::Result;
use crate::gpu::device::{Event, Stream};
use crate::gpu::launch::Kernels;
use crate::gpu::workspace::{Branch, Workspace};

/// A stream, and whether the last thing on it is a kernel of this call, under which the next may begin.
pub(super) struct Lane<'a> {
    pub(super) stream: &'a Stream,
    pub(super) overlaps: bool,
    chained: Cell<bool>,
    /// Whether a kernel of this call has been launched on it.
    launched: Cell<bool>,
}

impl<'a> Lane<'a> {
    /// A stream, on which kernels may begin early if it `overlaps`.
    pub(super) fn new(stream: &'a Stream, overlaps: bool) -> Self {
        Self { stream, overlaps, chained: Cell::new(false), launched: Cell::new(false) }
    }

    /// Whether the kernel that is launched now may begin before the one before it has ended.
    pub(super) fn overlap(&self) -> bool {
        self.launched.set(true);
        self.chained.replace(self.overlaps)
    }

    /// The kernel that is launched now begins when the one before it has ended, whatever it is.
    pub(super) fn no_overlap(&self) {
        self.launched.set(true);
        self.chained.set(self.overlaps);
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.chained.set(false);
        self.stream.wait(event)
    }
}

/// The streams of the two branches; one and the same where a schedule needs one, whose forks and joins are nothing.
#[derive(Clone, Copy)]
pub(super) struct Streams<'a> {
    pub(super) attention: &'a Lane<'a>,
    pub(super) ffn: &'a Lane<'a>,
    pub(super) workspace: &'a Workspace,
}

impl Streams<'_> {
    pub(super) fn are_two(&self) -> bool {
        !std::ptr::eq(self.attention, self.ffn)
    }

    /// The caller's stream hands over.
    pub(super) fn enter(&self, caller: &Stream) -> Result<()> {
        if self.are_two() {
            self.workspace.start.mark(caller)?;
            self.attention.wait(&self.workspace.start)?;
        }
        Ok(())
    }

    /// The FFN's stream leaves attention's; each is held back there if a test asked for it.
    pub(super) fn fork(&self, kernels: &Kernels) -> Result<()> {
        if self.are_two() {
            // Where attention's stream has nothing but the caller's work before it, that is what the FFN waits for.
            let left = if self.attention.launched.get() {
                self.workspace.forked.mark(self.attention.stream)?;
                &self.workspace.forked
            } else {
                &self.workspace.start
            };
            self.ffn.wait(left)?;
        }
        for (branch, lane) in [(Branch::Attention, self.attention), (Branch::Ffn, self.ffn)] {
            let time = self.workspace.hold_back[branch as usize];
            if !time.is_zero() {
                kernels.hold_back(lane.stream, time)?;
            }
        }
        Ok(())
    }

    /// The FFN's stream comes back to attention's.
    pub(super) fn join(&self) -> Result<()> {
        if self.are_two() {
            self.workspace.ffn_done.mark(self.ffn.stream)?;
            self.attention.wait(&self.workspace.ffn_done)?;
        }
        Ok(())
    }

    /// After a call that could not be enqueued to its end: the caller's stream takes back what there is of it, and what was counted for
    /// a kernel that then was not launched does not count in the next call. Errors here belong to what made the call fail, which is
    /// reported.
    pub(super) fn give_up(&self, caller: &Stream) {
        let _ = self.join().and_then(|()| self.leave(caller));
        let _ = self.workspace.reset_counters(caller);
    }

    /// The caller's stream takes back.
    pub(super) fn leave(&self, caller: &Stream) -> Result<()> {
        if self.are_two() {
            self.workspace.finished.mark(self.attention.stream)?;
            caller.wait(&self.workspace.finished)?;
        }
        Ok(())
    }
}
