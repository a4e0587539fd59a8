//! What a plan may name: the products that a schedule launches, and the variants that are worth trying for each.

use super::choice::{LayerProduct, Plan};
use super::{Limits, MAX_ROWS_IN_PARTS};
use crate::config::{Design, LayerConfig, Schedule};
use crate::error::Result;
use crate::gpu::attention::{self, Attention, AttentionVariant};
use crate::gpu::batch::Batch;
use crate::gpu::device::Device;
use crate::gpu::gemm::{self, Early, Meanwhile, Shape};
use crate::gpu::kernel;
use crate::gpu::launch::Kernels;
use crate::gpu::tiles::GEMM_TILE_K;

/// A product as a schedule launches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Launched {
    pub(super) product: LayerProduct,
    /// (M, N).
    pub(super) shape: (usize, usize),
    /// Along K of one pair or two.
    pub(super) steps: [usize; 2],
    pub(super) limits: Limits,
}

impl Launched {
    /// As the estimate takes it.
    pub(super) fn estimated(&self) -> Shape {
        (self.shape.0, self.shape.1, self.steps.iter().sum())
    }
}

/// The products of a layer, in the order in which `schedule` launches them (schedule.rs is where it does). `two_inputs`: there is
/// a kernel for the wide first product of two inputs. `meanwhile`: what a product beside attention leaves to that. `early`: how attention
/// follows a wide one.
pub(super) fn products(
    config: &LayerConfig,
    schedule: Schedule,
    rows: usize,
    two_inputs: bool,
    (early, meanwhile): (Early, Meanwhile),
) -> Vec<Launched> {
    let (h, f, q, qkv) = (config.hidden_size, config.intermediate_size, config.query_size(), config.qkv_size());
    // With a gate, its columns and the inner layer's.
    let first_size = config.first_size();
    let launched = |product, n, k: [usize; 2], limits| Launched {
        product,
        shape: (rows, n),
        steps: k.map(|k| k.div_ceil(GEMM_TILE_K)),
        limits,
    };
    let free = Limits::default();
    let first_qkv = launched(LayerProduct::Qkv, qkv, [h, 0], free);
    let first_ffn = launched(LayerProduct::W1, first_size, [h, 0], free);
    let beside_attention = Limits { meanwhile, ..free };
    // Whose sums alone a join adds up may leave them in parts: what ends a wide schedule or a serial design's block.
    let parts = |limits| Limits { parts: rows <= MAX_ROWS_IN_PARTS, ..limits };
    let ends_block = if config.design.is_parallel() { free } else { parts(free) };
    // Two norms are two inputs, at whose border tiles begin anew.
    let first = match (config.design == Design::PafPreNormTwo, two_inputs) {
        (true, false) => vec![first_ffn, first_qkv],
        (two, _) => {
            let edge = if two { qkv } else { 0 };
            vec![launched(LayerProduct::WideFirst, qkv + first_size, [h, 0], Limits { edge, early, ..free })]
        }
    };
    match schedule {
        Schedule::Serial | Schedule::TwoStream => {
            let output = launched(LayerProduct::Wo, h, [q, 0], ends_block);
            vec![first_qkv, output, first_ffn, launched(LayerProduct::W2, h, [f, 0], ends_block)]
        }
        Schedule::Fused => {
            [first, vec![launched(LayerProduct::WideSecond, h, [f, q], parts(beside_attention))]].concat()
        }
        Schedule::Hybrid => {
            let output = launched(LayerProduct::Wo, h, [q, 0], parts(free));
            [first, vec![launched(LayerProduct::W2, h, [f, 0], beside_attention), output]].concat()
        }
    }
}

/// Whether attention can follow a wide product before that has ended: no kernel gates the FFN on the same stream in between.
fn follows_wide_product(config: &LayerConfig, schedule: Schedule) -> bool {
    match schedule {
        Schedule::Serial | Schedule::TwoStream => false,
        Schedule::Fused => !config.gated,
        Schedule::Hybrid => true,
    }
}

/// How attention of this plan follows its wide product, if no kernel has to rotate queries and keys in between.
pub(in crate::gpu) fn early_attention(
    kernels: &Kernels,
    device: &Device,
    config: &LayerConfig,
    plan: &Plan,
    batch: &Batch,
) -> Result<Early> {
    if !follows_wide_product(config, plan.schedule()) {
        return Ok(Early::default());
    }
    let attention = named_or_by_halves(kernels, device, config, plan, batch);
    attention::follows(kernels, device, &attention, config.qkv_size())
}

/// Whether attention of this plan can begin while a product still makes the FFN's columns: that is a wide one, which rotates queries
/// and keys itself if they are rotated.
fn attention_is_beside(
    kernels: &Kernels,
    device: &Device,
    config: &LayerConfig,
    plan: &Plan,
    batch: &Batch,
) -> Result<bool> {
    let wide = follows_wide_product(config, plan.schedule());
    let Some(rotary) = config.rotary.filter(|_| wide) else {
        return Ok(wide);
    };
    let two_inputs = gemm::takes_two_inputs(kernels);
    let beside = (early_attention(kernels, device, config, plan, batch)?, Meanwhile::default());
    let products = products(config, plan.schedule(), batch.shape().rows(), two_inputs, beside);
    let Some(first) = products.iter().find(|launched| launched.product == LayerProduct::WideFirst) else {
        return Ok(false);
    };
    let planned = || gemm::planned(kernels, device, first.estimated(), first.limits);
    let variant = plan.product(first.product).map_or_else(planned, Ok)?;
    Ok(gemm::rotates(variant, &rotary, config.head_dim))
}

/// A layer's attention as the plan has it, without operands; its variant is left to the estimate where the plan names none.
pub(in crate::gpu) fn attention_of(
    kernels: &Kernels,
    device: &Device,
    config: &LayerConfig,
    plan: &Plan,
    batch: &Batch,
) -> Result<Attention> {
    let beside = attention_is_beside(kernels, device, config, plan, batch)?;
    Ok(Attention { beside, ..named_or_by_halves(kernels, device, config, plan, batch) })
}

/// A layer's attention in the variant that the plan names, or by halves where that is the fastest by estimate, in `fused` beside a product that
/// the plan does not have in another tile.
fn named_or_by_halves(
    kernels: &Kernels,
    device: &Device,
    config: &LayerConfig,
    plan: &Plan,
    batch: &Batch,
) -> Attention {
    let attention = Attention::of_layer(config, batch);
    let fits = plan.product(LayerProduct::WideSecond).is_none_or(gemm::is_by_halves);
    if plan.attention().is_some() || plan.schedule() != Schedule::Fused || config.gated || !fits {
        return Attention { variant: plan.attention(), ..attention };
    }
    let (rows, k) = (attention.sequences.rows, config.query_size() + config.intermediate_size);
    let product = (rows, config.hidden_size, k.div_ceil(GEMM_TILE_K));
    Attention { variant: attention::faster_by_halves(kernels, device, &attention, product), ..attention }
}

/// What candidates are made for.
pub(super) struct Setting<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) device: &'a Device,
    pub(super) config: &'a LayerConfig,
    pub(super) batch: &'a Batch,
}

impl Setting<'_> {
    /// The schedules that the design can have.
    pub(super) fn schedules(&self) -> impl Iterator<Item = Schedule> {
        let design = self.config.design;
        Schedule::ALL.into_iter().filter(move |schedule| schedule.check(design).is_ok())
    }

    /// The plan's products.
    pub(super) fn products(&self, plan: &Plan) -> Result<Vec<Launched>> {
        let two_inputs = gemm::takes_two_inputs(self.kernels);
        let early = early_attention(self.kernels, self.device, self.config, plan, self.batch)?;
        let meanwhile = attention::takes(self.kernels, self.device, &self.attention(plan)?)?;
        Ok(products(self.config, plan.schedule(), self.batch.shape().rows(), two_inputs, (early, meanwhile)))
    }

    fn attention(&self, plan: &Plan) -> Result<Attention> {
        attention_of(self.kernels, self.device, self.config, plan, self.batch)
    }

    /// The plan with each of the other ways to compute attention that the kernel in use has, products being left to the
    /// estimate, which depends on what attention leaves free.
    pub(super) fn other_attentions(&self, plan: &Plan) -> Result<Vec<Plan>> {
        let attention = self.attention(plan)?;
        let planned = attention::planned(self.kernels, self.device, &attention)?;
        let present = attention.variant.unwrap_or(planned);
        let others = self.attentions(plan, planned)?.filter(|&variant| variant != present);
        Ok(others.map(|variant| Plan::from(plan.schedule()).with_attention(variant)).collect())
    }

    /// All ways of the kernel that the estimate has chosen which may be worth it for such a plan.
    fn attentions(&self, plan: &Plan, planned: AttentionVariant) -> Result<impl Iterator<Item = AttentionVariant>> {
        let kernel = std::mem::discriminant(&planned);
        let (variants, attention) =
            (kernel::attention_variants(self.device, self.config.head_dim), self.attention(plan)?);
        let (device, schedule) = (self.device, plan.schedule());
        let of_kernel = variants.into_iter().filter(move |variant| std::mem::discriminant(variant) == kernel);
        Ok(of_kernel.filter(move |&variant| attention::is_worth_trying(device, &attention, variant, schedule)))
    }

    /// The plan with each of the `most` next best ways, by estimate, to compute a product of it.
    pub(super) fn other_products(&self, plan: &Plan, launched: &Launched, most: usize) -> Result<Vec<Plan>> {
        let ranked = gemm::ranked(self.kernels, self.device, launched.estimated(), launched.limits, most + 1)?;
        let named = plan.product(launched.product);
        let current = named.or(ranked.first().copied());
        let others = ranked.into_iter().filter(|&variant| Some(variant) != current).take(most);
        Ok(others.map(|variant| plan.with_product(launched.product, variant)).collect())
    }

    /// Whether this could be the planner's choice: everything that it names is a candidate, within the limits of its product.
    pub(super) fn allows(&self, plan: &Plan) -> Result<bool> {
        if plan.schedule().check(self.config.design).is_err() {
            return Ok(false);
        }
        // What follows asks what the plan's attention leaves to products, for which there has to be such a thing.
        let variants = kernel::attention_variants(self.device, self.config.head_dim);
        if plan.attention().is_some_and(|variant| !variants.contains(&variant)) {
            return Ok(false);
        }
        if let Some(variant) = plan.attention() {
            let planned = attention::planned(self.kernels, self.device, &self.attention(plan)?)?;
            if !self.attentions(plan, planned)?.any(|known| known == variant) {
                return Ok(false);
            }
        }
        let launched = self.products(plan)?;
        for product in LayerProduct::ALL {
            let Some(variant) = plan.product(product) else { continue };
            let Some(launched) = launched.iter().find(|launched| launched.product == product) else {
                return Ok(false);
            };
            let known = gemm::ranked(self.kernels, self.device, launched.estimated(), launched.limits, usize::MAX)?;
            if !known.contains(&variant) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Loads what a plan needs, so that nothing has to be loaded amid its launches or a capture of them. An error if the design or
/// the device cannot have it; limits that only make a plan slow are none.
pub(in crate::gpu) fn prepare(
    plan: &Plan,
    kernels: &Kernels,
    device: &Device,
    config: &LayerConfig,
    rows: usize,
) -> Result<()> {
    plan.schedule().check(config.design)?;
    if plan.is_estimated() {
        return Ok(());
    }
    if let Some(variant) = plan.attention() {
        attention::prepare(kernels, device, config.head_dim, variant)?;
    }
    let two_inputs = gemm::takes_two_inputs(kernels);
    for Launched { product, steps, limits, .. } in
        products(config, plan.schedule(), rows, two_inputs, Default::default())
    {
        if let Some(variant) = plan.product(product) {
            gemm::prepare(kernels, device, variant, steps, limits)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RoBERTa-large's layer in one design.
    fn config(design: Design) -> LayerConfig {
        LayerConfig { design, ..LayerConfig::new(1024, 16, 4096).unwrap() }
    }

    #[test]
    fn products_have_their_schedules_shapes_and_limits() {
        use LayerProduct::{Qkv, W1, W2, WideFirst, WideSecond, Wo};
        let meanwhile = Meanwhile { spare_bytes: 117_760, multiprocessors: 3, nanoseconds: 5000, half: false };
        let early = Early { columns: 3072, nanoseconds: 4000 };
        let of = |design, schedule, rows, two_inputs| {
            let all = products(&config(design), schedule, rows, two_inputs, (early, meanwhile));
            all.iter().map(|launched| (launched.product, launched.estimated(), launched.limits)).collect::<Vec<_>>()
        };
        let free = Limits::default();
        let (parts, wide) = (Limits { parts: true, ..free }, Limits { early, ..free });
        let edge = Limits { edge: 3072, ..wide };
        let beside = Limits { meanwhile, ..free };
        for (design, end) in [(Design::PafPreNormTwo, free), (Design::SafPreNorm, parts), (Design::SafPostNorm, parts)]
        {
            assert_eq!(
                of(design, Schedule::Serial, 128, true),
                [
                    (Qkv, (128, 3072, 16), free),
                    (Wo, (128, 1024, 16), end),
                    (W1, (128, 4096, 16), free),
                    (W2, (128, 1024, 64), end)
                ]
            );
        }
        // Too many rows for parts.
        let all = of(Design::SafPostNorm, Schedule::Serial, MAX_ROWS_IN_PARTS + 1, true);
        assert!(all.iter().all(|&(.., limits)| limits == free), "{all:?}");
        let second = (WideSecond, (128, 1024, 80), Limits { parts: true, ..beside });
        let two = Design::PafPreNormTwo;
        assert_eq!(of(Design::PafPostNorm, Schedule::Fused, 128, true), [(WideFirst, (128, 7168, 16), wide), second]);
        assert_eq!(of(two, Schedule::Fused, 128, true), [(WideFirst, (128, 7168, 16), edge), second]);
        assert_eq!(
            of(two, Schedule::Fused, 128, false),
            [(W1, (128, 4096, 16), free), (Qkv, (128, 3072, 16), free), second]
        );
        assert_eq!(
            of(Design::PafPreNorm, Schedule::Hybrid, 128, false),
            [(WideFirst, (128, 7168, 16), wide), (W2, (128, 1024, 64), beside), (Wo, (128, 1024, 16), parts)]
        );
        // A gate widens the first product alone.
        let gated = LayerConfig { gated: true, ..config(Design::PafPreNorm) };
        let shapes = |schedule| {
            let all = products(&gated, schedule, 128, true, (early, meanwhile));
            all.iter().map(|launched| (launched.product, launched.estimated())).collect::<Vec<_>>()
        };
        let second = (WideSecond, (128, 1024, 80));
        assert_eq!(shapes(Schedule::Fused), [(WideFirst, (128, 3072 + 8192, 16)), second]);
        assert_eq!(
            shapes(Schedule::TwoStream),
            [(Qkv, (128, 3072, 16)), (Wo, (128, 1024, 16)), (W1, (128, 8192, 16)), (W2, (128, 1024, 64))]
        );
    }
}
