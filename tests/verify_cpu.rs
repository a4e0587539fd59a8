//! Every case that `paf verify` runs without a GPU.

#[test]
fn every_cpu_case_is_within_its_bounds() {
    let cases = paf_cuda::verify::cpu::cases();
    assert!(cases.len() >= 60);
    for case in cases {
        if let Err(error) = case.run() {
            panic!("{}: {error}", case.name);
        }
    }
}
