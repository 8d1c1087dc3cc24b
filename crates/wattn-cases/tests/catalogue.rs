//! What the catalogue promises.

use std::collections::BTreeSet;

use wattn_cases::{Rows, SoftmaxCase, bench_catalogue, catalogue, compare};

/// What decides the pipeline that a case needs.
fn pipeline(case: &SoftmaxCase) -> impl Ord + use<> {
    let dims = case.dims();
    let class = |dim| [16, 32, 64, 128, 256, 576].into_iter().find(|&class| dim <= class);
    let options = [
        case.softcap.is_some(),
        case.alibi_slopes.is_some(),
        case.bias.is_some(),
        case.mask.is_some(),
        case.sinks.is_some(),
        dims.head_dim.is_multiple_of(4) && dims.value_dim.is_multiple_of(4),
    ];
    let storage = [case.q.storage, case.k.storage];
    (storage, class(dims.head_dim), class(dims.value_dim), options)
}

#[test]
fn names_are_unique() {
    for recipes in [catalogue(), bench_catalogue()] {
        let names: BTreeSet<_> = recipes.iter().map(|recipe| recipe.name).collect();
        assert_eq!(names.len(), recipes.len());
        assert!(names.iter().all(|name| name.starts_with("softmax/")));
    }
}

#[test]
fn few_pipelines_serve_all() {
    let pipelines: BTreeSet<_> = catalogue().iter().map(|recipe| pipeline(&recipe.build())).collect();
    assert!(pipelines.len() <= 31, "{} pipelines", pipelines.len());
}

#[test]
fn every_case_is_consistent_and_small() {
    for recipe in catalogue() {
        let case = recipe.build();
        assert_eq!(case.check(), Ok(()), "{}", case.name);
        let dims = case.dims();
        assert!(dims.batch * dims.heads * dims.queries * dims.keys <= 100_000, "{}", case.name);
    }
    for recipe in bench_catalogue() {
        let case = recipe.reduced(96).build();
        assert_eq!(case.check(), Ok(()), "{}", case.name);
    }
}

#[test]
fn only_cases_about_emptiness_are_empty() {
    let mut empty = Vec::new();
    for recipe in catalogue() {
        let case = recipe.build();
        if case.reference(Rows::All).out.iter().all(|&(_, x)| x == 0.0) {
            empty.push(recipe.name.trim_start_matches("softmax/"));
        }
        let holds_poison = [&case.q, &case.v].iter().any(|tensor| tensor.values.iter().any(|x| x.is_nan()));
        assert_eq!(holds_poison, recipe.poison, "{}", recipe.name);
    }
    let nothing = ["no_queries", "no_keys", "offset_hides_all", "sinks_no_keys"];
    let backward = nothing.map(|name| format!("backward_{name}"));
    let backward = backward.iter().map(String::as_str).chain(["backward_bias_no_batch"]);
    let nothing: Vec<&str> = nothing.into_iter().chain(backward).collect();
    assert_eq!(empty, nothing);
}

/// A result that is right to the last bit of f32 passes, and a wrong one does not.
#[test]
fn every_case_can_tell_right_from_wrong() {
    for recipe in catalogue() {
        let mut case = recipe.build();
        let reference = case.reference(Rows::All);
        case.expect_reference();
        let forward = [("out", &reference.out), ("lse", &reference.lse)];
        for (output, want) in forward.into_iter().chain(reference.gradients.iter().map(|(name, want)| (*name, want))) {
            let rules = case.rules(output, &reference);
            let mut got = case.expect[output].values.clone();
            let right = compare(output, &got, want, &rules);
            assert!(right.pass, "{}: {right:?}", case.name);
            if got.iter().all(|&x| x == 0.0 || x == f32::NEG_INFINITY) {
                continue;
            }
            for x in &mut got {
                *x *= 1.05;
            }
            let wrong = compare(output, &got, want, &rules);
            assert!(!wrong.pass, "{} {output} is not checked: {wrong:?}", case.name);
        }
    }
}
