use super::*;
use crate::gpu::tiles::HALVES_THREADS;

#[test]
fn large_products_take_large_tiles_and_small_ones_small() {
    let name = |m, n, k: usize| gemm_sm80(m, n, k.div_ceil(64), 132, |_| true).to_string();
    assert_eq!(name(16384, 4096, 1024), "sm80:128x128");
    assert_eq!(name(512, 4096, 1024), "sm80:128x128");
    assert_eq!(name(1, 1024, 1024), "sm80:64x32");
    assert_eq!(name(128, 1024, 4096), "sm80:64x32");
    // Where the best does not fit, another is taken.
    assert_eq!(gemm_sm80(16384, 4096, 16, 84, |index| index > 1).to_string(), "sm80:64x64");
}

/// An H200's.
const ROOM: Room = Room { shared_bytes: 232_448, clusters: [[132, 66, 30, 14], [264, 132, 60, 28]] };

#[test]
fn hopper_products_fill_the_device_and_split_where_they_cannot() {
    let name = |m, n, k: usize| gemm_sm90(m, n, k.div_ceil(64), Limits::default(), &ROOM).to_string();
    // Few rows: narrow tiles, and K split where N has few columns.
    assert!(name(1, 16384, 4096).starts_with("sm90:16x64:share"), "{}", name(1, 16384, 4096));
    assert!(name(1, 1024, 5120).starts_with("sm90:16x64:split"), "{}", name(1, 1024, 5120));
    assert!(name(64, 1024, 4096).contains(":split"), "{}", name(64, 1024, 4096));
    // One round of 128 tiles.
    assert!(name(512, 3072, 1024).starts_with("sm90:128x96:"), "{}", name(512, 3072, 1024));
    assert!(name(512, 6144, 2048).starts_with("sm90:128x192:"), "{}", name(512, 6144, 2048));
    // Many rows: what is finished hides, or matters little.
    assert!(name(16384, 4096, 1024).starts_with("sm90:128x128t:"), "{}", name(16384, 4096, 1024));
    assert!(name(8192, 2048, 8192).starts_with("sm90:256x128:"), "{}", name(8192, 2048, 8192));
}

#[test]
fn limits_are_observed() {
    for (m, n, edge) in [(1, 7168, 3072), (128, 7168, 3072), (512, 14336, 6144), (4096, 960, 192), (70, 584, 64)] {
        for (spare_bytes, parts) in [(0, false), (0, true), (117_760, false), (117_760, true)] {
            let meanwhile = Meanwhile { spare_bytes, ..Meanwhile::default() };
            let limits = Limits { edge, meanwhile, parts, ..Limits::default() };
            let GemmVariant::Sm90 { tile, cluster, stages } = gemm_sm90(m, n, 16, limits, &ROOM) else { panic!() };
            let tile = &GEMM_SM90_TILES[tile];
            assert!(parts || cluster.parts() == 1, "{m} × {n}: {}", tile.name);
            assert!(spare_bytes == 0 || tile.holds_two_blocks(), "{m} × {n}: {}", tile.name);
            assert!(tile.shared_bytes(stages, cluster) + spare_bytes <= ROOM.shared_bytes);
        }
    }
}

#[test]
fn tiles_by_halves_are_for_what_runs_beside_attention_by_halves() {
    let is_half =
        |&variant: &GemmVariant| matches!(variant, GemmVariant::Sm90 { tile, .. } if GEMM_SM90_TILES[tile].half);
    let attention = ATTENTION_SM90_TILES.iter().find(|tile| tile.half()).unwrap();
    for half in [false, true] {
        let spare_bytes = if half { attention.shared_bytes() as usize + 1024 } else { 0 };
        let limits = Limits { meanwhile: Meanwhile { spare_bytes, half, ..Meanwhile::default() }, ..Limits::default() };
        let ranked = ranked_gemm_sm90(2048, 1024, 80, limits, &ROOM);
        assert!(!ranked.is_empty() && ranked.iter().all(|variant| is_half(variant) == half), "{ranked:?}");
        let stages = |&variant: &GemmVariant| matches!(variant, GemmVariant::Sm90 { stages: 5.., .. });
        assert!(ranked.iter().any(stages), "{ranked:?}");
        // In parts of K too, where that is allowed.
        for parts in [false, true] {
            let ranked = ranked_gemm_sm90(1024, 1024, 80, Limits { parts, ..limits }, &ROOM);
            let in_parts =
                |variant: &GemmVariant| matches!(variant, GemmVariant::Sm90 { cluster, .. } if cluster.parts() > 1);
            assert!(ranked.iter().all(|variant| is_half(variant) == half), "{ranked:?}");
            assert_eq!(ranked.iter().any(in_parts), parts, "{ranked:?}");
        }
        // There is one for any number of rows.
        for (m, n) in [(1, 1024), (17, 64), (64, 4096), (65, 8)] {
            assert_eq!(is_half(&gemm_sm90(m, n, 80, limits, &ROOM)), half, "{m} × {n}");
        }
    }
    // Both blocks, with the kilobyte that each costs, have the memory of a multiprocessor of an H100 or H200.
    let product = GEMM_SM90_TILES.iter().find(|tile| tile.half).unwrap();
    let bytes = product.shared_bytes(5, Cluster::Share { n: 1, m: 1 }) + attention.shared_bytes() as usize;
    assert!(bytes + 2 * 1024 <= 228 * 1024, "{bytes}");
    // And, of registers, what a block of all their threads would have.
    assert_eq!((product.threads() + attention.threads()) as usize, HALVES_THREADS);
}

#[test]
fn attention_goes_by_halves_where_that_was_measured_to_be_faster() {
    let tile = ATTENTION_SM90_TILES.iter().find(|tile| tile.half()).unwrap();
    let large = (1024, 16, 4096 + 1024);
    let base = (768, 12, 3072 + 768);
    let falcon = (4544, 71, 18176 + 4544);
    let faster = |(n, heads, k): (usize, usize, usize), batch: usize, seq_len: usize| {
        let tiles = batch * seq_len.div_ceil(tile.rows()) * heads;
        is_faster_by_halves(tile, (tiles, seq_len, false), (batch * seq_len, n, k.div_ceil(GEMM_TILE_K)), 132)
    };
    for (batch, seq_len) in
        [(8, 64), (8, 128), (16, 64), (32, 32), (12, 128), (24, 64), (4, 384), (4, 128), (4, 256), (4, 512), (8, 256)]
    {
        assert!(faster(large, batch, seq_len), "{batch} × {seq_len}");
    }
    for (batch, seq_len) in [
        (2, 128),
        (4, 64),
        (8, 32),
        (16, 16),
        (1, 128),
        (1, 512),
        (1, 1024),
        (2, 384),
        (6, 128),
        (8, 512),
        (32, 128),
        (1, 2048),
        (4, 8192),
    ] {
        assert!(!faster(large, batch, seq_len), "{batch} × {seq_len}");
    }
    assert!(faster(base, 16, 128) && faster(base, 20, 128) && faster(base, 8, 256));
    assert!(!faster(falcon, 1, 256) && !faster(falcon, 3, 128) && !faster(falcon, 4, 128) && !faster(falcon, 8, 128));
    // Of a causal sequence each query sees half of the keys on average.
    let causal = |causal| is_faster_by_halves(tile, (256, 512, causal), (1024, 1024, 80), 132);
    assert!(causal(true) && !causal(false));
}

#[test]
fn parts_of_k_leave_another_kernel_its_multiprocessors() {
    for (m, n, k, taken) in [(128, 2048, 10240, 32), (128, 1024, 5120, 16)] {
        let meanwhile = Meanwhile { multiprocessors: taken, nanoseconds: 5000, ..Meanwhile::default() };
        let limits = Limits { meanwhile, parts: true, ..Limits::default() };
        let GemmVariant::Sm90 { tile, cluster, stages } = gemm_sm90(m, n, k / 64, limits, &ROOM) else { panic!() };
        let tile = &GEMM_SM90_TILES[tile];
        let blocks = m.div_ceil(tile.m) * n.div_ceil(tile.n) * cluster.parts();
        let places = (132 - taken) * sm90_blocks_per_multiprocessor(tile, stages, cluster);
        assert!(cluster.parts() > 1 && blocks <= places, "{m} × {n}: {} {cluster:?}", tile.name);
    }
}

#[test]
fn what_begins_early_makes_rounds_worth_their_time() {
    let cost = |name: &str, early| {
        let limits = Limits { early, ..Limits::default() };
        sm90_cost_ns(512, 7168, 16, &ROOM, limits, name.parse().expect("a variant's name"))
    };
    let (none, attention) = (Early::default(), Early { columns: 3072, nanoseconds: 10_000 });
    let [one_round, two_rounds] = ["sm90:128x224:share1x2:stages4", "sm90:128x128:share1x2:stages6"];
    assert!(cost(one_round, none) < cost(two_rounds, none));
    assert!(cost(one_round, attention) > cost(two_rounds, attention));
    // What takes less time than the second round does not show.
    let short = Early { nanoseconds: 1000, ..attention };
    assert_eq!(cost(two_rounds, short), cost(two_rounds, none));
}

#[test]
fn ranked_variants_observe_limits_and_begin_with_the_planned_one() {
    for (m, n, edge) in [(1, 7168, 3072), (128, 7168, 3072), (4096, 960, 192), (70, 584, 0)] {
        for spare_bytes in [0, 117_760] {
            let limits = Limits {
                edge,
                meanwhile: Meanwhile { spare_bytes, ..Meanwhile::default() },
                parts: edge == 0,
                ..Limits::default()
            };
            let ranked = ranked_gemm_sm90(m, n, 16, limits, &ROOM);
            assert_eq!(ranked[0], gemm_sm90(m, n, 16, limits, &ROOM));
            assert!(ranked.len() >= 3, "{m} × {n}: {ranked:?}");
            let costs = ranked.iter().map(|&variant| sm90_cost_ns(m, n, 16, &ROOM, limits, variant));
            assert!(costs.is_sorted(), "{m} × {n}: {ranked:?}");
            for (i, &variant) in ranked.iter().enumerate() {
                assert!(!ranked[..i].contains(&variant), "{variant} twice");
                let GemmVariant::Sm90 { tile, cluster, stages } = variant else { panic!("{variant}") };
                let tile = &GEMM_SM90_TILES[tile];
                assert!(spare_bytes == 0 || tile.holds_two_blocks(), "{m} × {n}: {variant}");
                assert!(tile.shared_bytes(stages, cluster) + spare_bytes <= ROOM.shared_bytes);
            }
        }
    }
    for available in [|_| true, |index| index > 1] {
        let ranked = ranked_gemm_sm80(512, 4096, 16, 132, available);
        assert_eq!(ranked[0], gemm_sm80(512, 4096, 16, 132, available));
        assert_eq!(ranked.len(), (0..GEMM_SM80_TILES.len()).filter(|&index| available(index)).count());
    }
}

#[test]
fn parts_cost_the_join_their_time_in_pairs_too() {
    let limits = Limits { parts: true, ..Limits::default() };
    let cost = |name: &str| sm90_cost_ns(128, 1024, 80, &ROOM, limits, name.parse().expect("a variant's name"));
    for parts in 2..=GEMM_MAX_PARTS {
        let [alone, pairs] = ["", "-share2x1"].map(|pairs| cost(&format!("sm90:128x64:parts{parts}{pairs}:stages9")));
        assert!((alone..alone + 200.0).contains(&pairs), "{parts}: {alone}, {pairs}");
    }
    // Few rows of a short K are best left whole.
    let GemmVariant::Sm90 { cluster, .. } = gemm_sm90(128, 1024, 16, limits, &ROOM) else { panic!() };
    assert_eq!(cluster.parts(), 1);
}

#[test]
fn only_two_streams_of_many_rows_launch_one_by_one() {
    for schedule in Schedule::ALL {
        assert!(kernels_overlap(schedule, 512), "{schedule}");
        assert_eq!(kernels_overlap(schedule, 513), schedule != Schedule::TwoStream, "{schedule}");
    }
}

#[test]
fn every_shape_has_a_variant_that_fits() {
    for m in [1, 2, 17, 100, 1000, 1 << 20] {
        for n in [8, 264, 1 << 17] {
            for steps in [1, 2, 15, 1000] {
                let GemmVariant::Sm90 { tile, cluster, stages } = gemm_sm90(m, n, steps, Limits::default(), &ROOM)
                else {
                    panic!()
                };
                let tile = &GEMM_SM90_TILES[tile];
                assert!(stages >= 2 && tile.shared_bytes(stages, cluster) <= ROOM.shared_bytes);
                assert!(cluster.split() <= steps);
            }
        }
    }
}

#[test]
fn attention_tiles_fill_the_device() {
    let rows = |seq_len: usize, batch_heads| {
        let blocks = |rows| batch_heads * seq_len.div_ceil(rows);
        ATTENTION_TILES[attention_tile(64, blocks, 132, |_| true).unwrap()].rows()
    };
    assert_eq!(rows(128, 16), 32);
    assert_eq!(rows(512, 16), 64);
    assert_eq!(rows(512, 128), 128);
    assert!(attention_tile(72, |_| 16, 132, |_| true).is_none());
}

#[test]
fn hopper_attention_takes_large_tiles_once_they_fill_the_device() {
    let rows = |batch: usize, seq_len: usize| {
        let tiles = |rows| 16 * batch * seq_len.div_ceil(rows);
        ATTENTION_SM90_TILES[attention_sm90(64, tiles, seq_len, false, 132).unwrap()].rows()
    };
    assert_eq!(
        [(1, 128), (1, 512), (8, 512), (32, 512), (1, 8192)].map(|(batch, len)| rows(batch, len)),
        [64, 64, 256, 256, 256]
    );
    assert!(attention_sm90(72, |_| 16, 128, false, 132).is_none());
    let wide = attention_sm90(80, |rows| 64 * 2048usize.div_ceil(rows), 2048, false, 132).unwrap();
    assert_eq!(ATTENTION_SM90_TILES[wide].rows(), 128);
    // In one round, the longest of causal tiles is what counts.
    let causal = attention_sm90(64, |rows| 16 * 2048usize.div_ceil(rows), 2048, true, 132).unwrap();
    assert_eq!(ATTENTION_SM90_TILES[causal].rows(), 64);
}

#[test]
fn every_width_has_a_norm_kernel_that_holds_it() {
    for hidden in (8..=super::super::norm::MAX_HIDDEN).step_by(8) {
        for rows in [1, 128, 1 << 20] {
            assert!(NormKernel::ALL[norm_kernel(rows, hidden, 132)].max_hidden() >= hidden);
        }
    }
    assert_eq!(norm_rows_kernel(1 << 20, 1024, 132).map(|index| NormKernel::ROWS[index].max_hidden()), Some(1024));
    assert_eq!([(512, 1024), (1 << 20, 1016)].map(|(rows, hidden)| norm_rows_kernel(rows, hidden, 132)), [None; 2]);
}
