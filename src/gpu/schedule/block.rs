//! One block of a serial layer alone, again and again: what measuring a block takes.

use super::{DeviceLayer, LayerProduct, Matrix, Run, Scratch, norm_1, norm_2};
use crate::error::Result;
use crate::gpu::workspace::Branch;

impl Run<'_> {
    /// `y = LN(x + B(x))`, or, where norms come first, `y = x + B(LN(x))`, which finds its norm made and makes that of `next`. B is
    /// Attn with LN1, or FFN with LN2. `x` and `y` may be one buffer.
    pub(super) unsafe fn block(
        &self,
        block: Branch,
        layer: &DeviceLayer,
        next: Option<&DeviceLayer>,
        x: Matrix,
        y: Matrix,
    ) -> Result<()> {
        let Scratch { attention_out, normed_1, .. } = self.scratch;
        let (lane, post) = (self.streams.attention, self.config.design.is_post_norm());
        let (input, out) = if post { (x, attention_out) } else { (normed_1, y) };
        // SAFETY: the caller's promise (see `forward`), passed on.
        unsafe {
            let (product, gemm, norm) = match block {
                Branch::Attention => {
                    (LayerProduct::Wo, self.attention_branch(lane, layer, input, out)?, norm_1(layer, y))
                }
                Branch::Ffn => (LayerProduct::W2, self.ffn_branch(lane, layer, input, out)?, norm_2(layer, y)),
            };
            let sum = self.product_for_join(lane, product, gemm, x)?;
            if post { self.join(sum, None, [Some(norm), None]) } else { self.finish_pre_norm(sum, y, next) }
        }
    }
}
