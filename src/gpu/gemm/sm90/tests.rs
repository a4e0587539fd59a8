use super::*;

/// An H200's.
const SHARED_BYTES: usize = 232_448;

fn checked(name: &str, steps: [usize; 2]) -> Result<()> {
    let GemmVariant::Sm90 { tile, cluster, stages } = name.parse()? else { panic!("{name}") };
    check(&GEMM_SM90_TILES[tile], cluster, stages, steps, SHARED_BYTES)
}

#[test]
fn what_the_kernel_cannot_do_is_refused() {
    for good in [
        "sm90:128x64:split4:stages4",
        "sm90:128x192:parts3:stages4",
        "sm90:128x128:parts8-share2x1:stages6",
        "sm90:128x128t:share2x1:stages6",
        "sm90:128x128h:share2x1:stages5",
        "sm90:128x128h:parts2:stages5",
    ] {
        checked(good, [8, 2]).unwrap();
    }
    for (bad, steps, part) in [
        // Where N is free, or warpgroups take turns, blocks have no code to meet.
        ("sm90:128x192:split2:stages3", [8, 2], "none for tile 128x192"),
        ("sm90:128x128t:split2:stages3", [8, 2], "none for tile 128x128t"),
        ("sm90:128x64:split3:stages4", [8, 2], "split of K"),
        ("sm90:128x64:split18446744073709551615:stages2", [8, 2], "stages"),
        ("sm90:128x64:share1x1:stages18446744073709551615", [8, 2], "stages"),
        ("sm90:128x64:split8:stages4", [4, 2], "split of K"),
        ("sm90:128x128t:parts2:stages4", [8, 2], "none for tile 128x128t"),
        ("sm90:128x128h:split2:stages3", [8, 2], "none for tile 128x128h"),
        ("sm90:128x64:parts1:stages4", [8, 2], "parts of K"),
        ("sm90:128x64:parts9:stages4", [80, 2], "parts of K"),
        ("sm90:128x64:parts0:stages4", [8, 2], "parts of K"),
        ("sm90:128x64:parts8:stages4", [4, 2], "parts of K"),
        ("sm90:128x64:parts2-share3x1:stages4", [8, 2], "3 × 1"),
        ("sm90:16x64:parts2-share4x1:stages4", [8, 2], "4 × 1"),
        ("sm90:128x64:share0x1:stages4", [8, 2], "0 × 1"),
        // Nobody would tell the fifth block of a cluster that a stage is free.
        ("sm90:128x128:share4x2:stages4", [8, 2], "4 × 2"),
        ("sm90:128x128:share2x4:stages4", [8, 2], "2 × 4"),
        ("sm90:128x64:parts2-share4x2:stages4", [8, 2], "4 × 2"),
        ("sm90:128x64:share1x1:stages1", [8, 2], "stages"),
        ("sm90:128x64:share1x1:stages17", [8, 2], "stages"),
    ] {
        let message = checked(bad, steps).expect_err(bad).to_string();
        assert!(message.contains(part), "{bad}: {message}");
    }
}

#[test]
fn tiles_that_pass_the_check_have_a_kernel() {
    let kinds = [Cluster::Share { n: 1, m: 1 }, Cluster::Split(2), Cluster::Parts { parts: 2, n: 1, m: 1 }];
    for tile in &GEMM_SM90_TILES {
        for (cluster, ends) in kinds.into_iter().zip([Ends::Linear, Ends::Split, Ends::Sums]) {
            // A tile may have a kernel, and yet no room for the sums of a split.
            let passes = check(tile, cluster, 2, [8, 2], SHARED_BYTES).is_ok();
            assert!(!passes || ends.has(tile), "{} {cluster:?}", tile.name);
            assert!(passes || ends == Ends::Split || !ends.has(tile), "{} {cluster:?}", tile.name);
        }
    }
    assert!(Ends::ALL.iter().enumerate().all(|(i, &ends)| ends as usize == i));
}

#[test]
fn what_attention_waits_for_is_every_warpgroups_share_of_its_tiles() {
    let counted = |name: &str, m, columns| {
        let GemmVariant::Sm90 { tile, cluster, .. } = name.parse().unwrap() else { panic!("{name}") };
        super::counted(&GEMM_SM90_TILES[tile], cluster, m, columns)
    };
    // Two warpgroups share a tile, of which one in five columns is another product's too.
    assert_eq!(counted("sm90:128x224:share1x1:stages4", 512, 1008), 4 * 5 * 2);
    // They take turns; one has it alone.
    assert_eq!(counted("sm90:128x128t:share1x1:stages6", 512, 3072), 4 * 24);
    assert_eq!(counted("sm90:128x64:share1x1:stages9", 100, 3072), 48);
    // Three rows of tiles are two of pairs, of which the last has one tile below C; three columns are no reason for a fourth.
    assert_eq!(counted("sm90:128x128:share1x2:stages6", 300, 384), 4 * 3 * 2);
    assert_eq!(counted("sm90:128x128:share2x1:stages6", 300, 384), 3 * 3 * 2);
    // Each block of a split finishes some rows of the tile.
    assert_eq!(counted("sm90:128x64:split4:stages4", 100, 64), 4);
}

#[test]
fn divisors_divide_exactly() {
    // As the kernel does.
    let divided = |n: u32, by: usize| match divisor(by) {
        0 => n,
        factor => {
            let high = u64::from(n) * (factor >> 32) + ((u64::from(n) * (factor & 0xffff_ffff)) >> 32);
            (high >> 32) as u32
        }
    };
    for by in (1..=70).chain([1000, 3584, 65_535, 65_536, 65_537, 1 << 20, (1 << 31) - 1]) {
        let whole = by as u32;
        let around = |multiple: u32| [multiple.saturating_sub(1), multiple, multiple.saturating_add(1)];
        let multiples = [0, 1, 2, 3, 1000, (i32::MAX as u32) / whole].map(|times| times.saturating_mul(whole));
        for n in multiples.into_iter().flat_map(around).chain([i32::MAX as u32]) {
            assert_eq!(divided(n, by), n / whole, "{n} / {by}");
        }
    }
}

#[test]
fn blocks_that_share_nothing_go_in_pairs_where_these_have_a_place() {
    let alone = Cluster::Share { n: 1, m: 1 };
    let parts = Cluster::Parts { parts: 4, n: 1, m: 1 };
    assert!(in_pairs(alone, 128, 112, 66) && in_pairs(alone, 512, 132, 66) && in_pairs(parts, 256, 64, 66));
    assert!(!in_pairs(parts, 257, 64, 66) && !in_pairs(alone, 513, 64, 66));
    assert!(!in_pairs(alone, 128, 111, 66) && !in_pairs(alone, 128, 132, 65));
    for shares in [Cluster::Share { n: 2, m: 1 }, Cluster::Split(2), Cluster::Parts { parts: 2, n: 1, m: 2 }] {
        assert!(!in_pairs(shares, 128, 64, 66), "{shares:?}");
    }
}

#[test]
fn tiles_begin_anew_at_an_edge() {
    let tile = GEMM_SM90_TILES.iter().find(|tile| tile.name == "128x224").unwrap();
    let clusters = |n, edge, across| tile.clusters(300, n, edge, Cluster::Share { n: across, m: 1 });
    assert_eq!(clusters(14336, 0, 1), (3, 0, 64));
    assert_eq!(clusters(14336, 6144, 1), (3, 28, 28 + 37));
    assert_eq!(clusters(14336, 6144, 2), (3, 14, 14 + 19));
    assert_eq!(clusters(7168, 3136, 2), (3, 7, 7 + 9));
}

#[test]
fn parts_cover_both_pairs_once() {
    for steps in [[1, 0], [8, 2], [64, 16], [7, 5], [160, 32]] {
        for parts in (1..=GEMM_MAX_PARTS).filter(|&parts| !some_are_empty(steps, parts)) {
            for (first, steps) in first_steps(steps, parts).iter().zip(steps) {
                assert_eq!((first[0], first[parts]), (0, steps as i32), "{steps} in {parts}");
                assert!(first.is_sorted(), "{first:?}");
            }
        }
    }
}
