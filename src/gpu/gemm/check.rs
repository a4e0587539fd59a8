//! What a product asks of its operands.

use super::{First, Gemm, Then, check_activation};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gpu::memory::Matrix;

/// Most rows, columns and elements along K: indices and the tensor copies' coordinates stay within 32 bits.
const MAX_ROWS: usize = 1 << 20;

impl Gemm {
    pub(super) fn check(&self) -> Result<()> {
        const OPERATION: &str = "gemm";
        let Self { a, w, c, bias, second, beside, .. } = self;
        let shape = |matrix: &Matrix| format!("{} × {}", matrix.rows, matrix.cols);
        if a.cols != w.cols || w.rows != c.cols || a.rows != c.rows {
            return Err(Error::mismatch(
                OPERATION,
                "shapes",
                format!("A {}, W {}, C {}", shape(a), shape(w), shape(c)),
                "A M×K, W N×K, C M×N",
            ));
        }
        if a.rows == 0 || a.cols == 0 || c.cols == 0 || !a.cols.is_multiple_of(8) || !c.cols.is_multiple_of(8) {
            return Err(Error::mismatch(
                OPERATION,
                "M, N, K",
                format!("{}, {}, {}", c.rows, c.cols, a.cols),
                "none 0, N and K multiples of 8",
            ));
        }
        if c.rows > MAX_ROWS || c.cols > MAX_ROWS || a.cols > MAX_ROWS {
            let got = format!("{}, {}, {}", c.rows, c.cols, a.cols);
            return Err(Error::mismatch(OPERATION, "M, N, K", got, format!("at most {MAX_ROWS} each")));
        }
        for (what, matrix) in [("A", a), ("W", w), ("C", c)] {
            matrix.check_aligned(OPERATION, what)?;
        }
        if let Some((a2, w2)) = second {
            // The same rules for the second pair, which is a product of its own into the same C.
            let pair = Self { a: *a2, w: *w2, second: None, then: Then::Bias, ..*self };
            pair.check()?;
        }
        if let Some((a2, column)) = beside {
            let alike = (a2.rows, a2.cols) == (a.rows, a.cols) && second.is_none() && self.sums == 0 && !c.overlaps(a2);
            if !alike || *column == 0 || *column >= c.cols || !column.is_multiple_of(8) {
                let got = format!("{} at {:#x}, from column {column}", shape(a2), a2.pointer);
                let expected = format!(
                    "{}, in other memory than C, a column of C that is a multiple of 8, and neither a second pair nor parts of K",
                    shape(a)
                );
                return Err(Error::mismatch(OPERATION, "second A", got, expected));
            }
            a2.check_aligned(OPERATION, "second A")?;
        }
        if self.sums != 0 && (!matches!(self.then, Then::Bias) || *bias != 0 || !self.sums.is_multiple_of(16)) {
            let got = format!("with bias at {bias:#x}, {:?}, at {:#x}", self.then, self.sums);
            return Err(Error::mismatch(
                OPERATION,
                "sums of parts of K",
                got,
                "no epilogue, a 16-byte aligned pointer",
            ));
        }
        if let Then::Activation(act, _) = self.then {
            check_activation(act)?;
        }
        if let Some(rotation) = &self.rotation {
            let whole = beside.map_or(c.cols, |(_, column)| column);
            rotation.check(OPERATION, &Matrix { cols: whole, ..*c })?;
            if self.sums != 0 {
                return Err(Error::mismatch(
                    OPERATION,
                    "rotation",
                    "of sums of parts of K",
                    "none: they are not final",
                ));
            }
        }
        if matches!(self.first, First::Counted(_)) && self.sums == 0 {
            return Err(Error::mismatch(
                OPERATION,
                "wait for a count",
                "without parts of K",
                "sums of them: no other kernel looks at it",
            ));
        }
        if (self.ready.columns.is_some() || self.ready.end.is_some()) && self.sums != 0 {
            return Err(Error::mismatch(
                OPERATION,
                "count of tiles",
                "of sums of parts of K",
                "none: they are not counted",
            ));
        }
        if !bias.is_multiple_of(16) {
            return Err(Error::mismatch(OPERATION, "bias", format!("at {bias:#x}"), "a 16-byte aligned pointer"));
        }
        if *bias != 0 && c.overlaps_bytes(*bias, c.cols * Dtype::BYTES) {
            let got = format!("at {bias:#x}, overlapping C at {:#x}", c.pointer);
            return Err(Error::mismatch(OPERATION, "bias", got, "memory apart from C"));
        }
        if c.overlaps(a) || c.overlaps(w) {
            return Err(Error::mismatch(
                OPERATION,
                "C",
                format!("at {:#x}, overlapping A at {:#x} or W at {:#x}", c.pointer, a.pointer, w.pointer),
                "memory of its own",
            ));
        }
        if let Then::Residual(r) = self.then {
            if (r.rows, r.cols, r.stride) != (c.rows, c.cols, c.stride) {
                return Err(Error::mismatch(OPERATION, "residual", shape(&r), format!("{} with C's stride", shape(c))));
            }
            r.check_aligned(OPERATION, "residual")?;
            if r != *c && r.overlaps(c) {
                return Err(Error::mismatch(
                    OPERATION,
                    "residual",
                    format!("at {:#x}, partly overlapping C at {:#x}", r.pointer, c.pointer),
                    "C itself or memory of its own",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Count, Early, Meanwhile, Ready};
    use super::*;
    use crate::config::HiddenAct;

    fn matrix(pointer: u64, rows: usize, cols: usize) -> Matrix {
        Matrix { pointer, rows, cols, stride: cols }
    }

    fn gemm() -> Gemm {
        Gemm {
            a: matrix(0x10_0000, 5, 64),
            w: matrix(0x20_0000, 24, 64),
            bias: 0,
            then: Then::Bias,
            rotation: None,
            c: matrix(0x30_0000, 5, 24),
            second: None,
            variant: None,
            overlap: false,
            first: First::Waits,
            beside: None,
            sums: 0,
            meanwhile: Meanwhile::default(),
            early: Early::default(),
            ready: Ready::default(),
        }
    }

    #[test]
    fn bad_shapes_and_aliases_are_refused_with_their_values() {
        gemm().check().unwrap();
        let r = gemm().c;
        Gemm { then: Then::Residual(r), ..gemm() }.check().unwrap();
        let cases = [
            (Gemm { w: matrix(0x20_0000, 24, 72), ..gemm() }, "24 × 72"),
            (Gemm { c: matrix(0x30_0000, 6, 24), ..gemm() }, "6 × 24"),
            (Gemm { c: matrix(0x10_0000, 5, 24), ..gemm() }, "overlapping A"),
            (Gemm { bias: 0x104, ..gemm() }, "0x104"),
            (Gemm { bias: 0x30_0010, ..gemm() }, "at 0x300010, overlapping C"),
            (Gemm { then: Then::Activation(HiddenAct::Silu, 0), ..gemm() }, "activation silu"),
            (Gemm { sums: 0x9008, ..gemm() }, "0x9008"),
            (
                Gemm { sums: 0x9000, ready: Ready { columns: Some((0x100, 8)), ..Ready::default() }, ..gemm() },
                "not counted",
            ),
            (Gemm { sums: 0x9000, ready: Ready { end: Some(0x100), ..Ready::default() }, ..gemm() }, "not counted"),
            (
                Gemm { first: First::Counted(Count { counters: 0x100, count: 1, is_last: true }), ..gemm() },
                "without parts",
            ),
            (Gemm { sums: 0x9000, bias: 0x100, ..gemm() }, "with bias at 0x100"),
            (Gemm { sums: 0x9000, then: Then::Residual(r), ..gemm() }, "Residual"),
            (Gemm { then: Then::Residual(matrix(0x40_0000, 5, 32)), ..gemm() }, "5 × 32"),
            (Gemm { then: Then::Residual(matrix(0x30_0010, 5, 24)), ..gemm() }, "partly overlapping"),
            (Gemm { second: Some((matrix(0x50_0000, 4, 8), matrix(0x60_0000, 24, 8))), ..gemm() }, "A 4 × 8"),
            (Gemm { second: Some((matrix(0x50_0000, 5, 8), matrix(0x60_0004, 24, 8))), ..gemm() }, "0x600004"),
            (Gemm { second: Some((matrix(0x30_0000, 5, 8), matrix(0x60_0000, 24, 8))), ..gemm() }, "overlapping A"),
            (Gemm { c: matrix(0x30_0000, 1 << 21, 24), a: matrix(0x8000_0000, 1 << 21, 64), ..gemm() }, "2097152"),
            (Gemm { beside: Some((matrix(0x50_0000, 5, 56), 8)), ..gemm() }, "5 × 56"),
            (Gemm { beside: Some((matrix(0x30_0000, 5, 64), 8)), ..gemm() }, "0x300000"),
            (Gemm { beside: Some((matrix(0x50_0000, 5, 64), 32)), ..gemm() }, "column 32"),
            (Gemm { beside: Some((matrix(0x50_0000, 5, 64), 24)), ..gemm() }, "column 24"),
            (Gemm { beside: Some((matrix(0x50_0000, 5, 64), 0)), ..gemm() }, "column 0"),
            (Gemm { beside: Some((matrix(0x50_0000, 5, 64), 12)), ..gemm() }, "column 12"),
            (Gemm { beside: Some((matrix(0x50_0000, 5, 64), 8)), sums: 0x9000, ..gemm() }, "nor parts of K"),
            (Gemm { a: matrix(0x10_0000, 5, 60), w: matrix(0x20_0000, 24, 60), ..gemm() }, "5, 24, 60"),
        ];
        for (bad, part) in cases {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
