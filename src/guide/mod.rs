//! Guides, step by step.
//!
//! - Running it: [`stores`], [`operations`], [`incidents`], [`cache`], [`restore`] and
//!   [`restore_sqlite`].
//! - Building with it: [`recipes`], [`http_api`] and [`adopting`].
//! - Reference: [`security`], [`benchmarks`] and [`glossary`].

/// The examples in a page use several features, so that it is compiled with all of them.
macro_rules! pages {
    ($($name:ident $file:literal;)+) => {
        $(
            #[cfg_attr(
                all(
                    feature = "cache",
                    feature = "geoip",
                    feature = "postgres",
                    feature = "rate-limit",
                    feature = "serde",
                    feature = "settings-page",
                    feature = "sqlite",
                    feature = "test-util"
                ),
                doc = include_str!($file)
            )]
            #[cfg_attr(
                not(all(
                    feature = "cache",
                    feature = "geoip",
                    feature = "postgres",
                    feature = "rate-limit",
                    feature = "serde",
                    feature = "settings-page",
                    feature = "sqlite",
                    feature = "test-util"
                )),
                doc = "This page is in the documentation that is built with all features."
            )]
            pub mod $name {}
        )+
    };
}

pages! {
    adopting "adopting.md";
    benchmarks "benchmarks.md";
    cache "cache.md";
    glossary "glossary.md";
    http_api "http_api.md";
    incidents "incidents.md";
    operations "operations.md";
    security "security.md";
    stores "stores.md";
}

// Its code is compiled by the package in `tests/heavy`, since it needs many crates.
#[cfg(not(doctest))]
pages! {
    recipes "recipes.md";
}

#[doc = include_str!("restore.md")]
pub mod restore {}

#[doc = include_str!("restore_sqlite.md")]
pub mod restore_sqlite {}

#[cfg(test)]
mod tests {
    #[test]
    fn readme_blocks_with_attributes_are_in_a_page_that_compiles() {
        let page = include_str!("service.md");
        let blocks: Vec<_> = include_str!("../../README.md")
            .split("```rust,")
            .skip(1)
            .filter_map(|rest| rest.split_once('\n')?.1.split_once("```"))
            .map(|(block, _)| block)
            .collect();
        assert_eq!(blocks.len(), 1);
        for block in blocks {
            assert!(page.contains(block), "in no page:\n{block}");
        }
    }
}
