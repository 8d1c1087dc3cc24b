fn main() {
    let filter: Vec<String> = std::env::args().skip(1).collect();
    for adapter in wattn_tests::adapters(None) {
        let engine = wattn::Engine::on_adapter(&adapter).unwrap();
        println!("{} {:?}", wattn_tests::device_label(&adapter.get_info()), engine.capabilities());
        for recipe in wattn_cases::catalogue() {
            if !filter.is_empty() && !filter.iter().all(|f| recipe.name.contains(f.as_str())) {
                continue;
            }
            let case = recipe.build();
            let reference = case.reference(wattn_cases::Rows::All);
            for variant in wattn_tests::Variant::all(engine.capabilities()) {
                let t = std::time::Instant::now();
                match wattn_tests::judge(&engine, &case, Some(variant), &reference) {
                    Ok((_, comparisons)) => {
                        for c in comparisons {
                            println!(
                                "{} {variant} {} {} {:.2e} / {:.2e} {} {:?} {:.2}s",
                                if c.pass { "ok  " } else { "FAIL" },
                                recipe.name,
                                c.output,
                                c.rms_ratio,
                                c.tolerance,
                                c.elements,
                                c.error,
                                t.elapsed().as_secs_f64()
                            )
                        }
                    }
                    Err(e) => println!("ERR  {variant} {} {e}", recipe.name),
                }
            }
        }
        println!("pipelines {}", engine.pipelines());
    }
}
