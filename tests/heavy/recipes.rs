//! The code of the guide's recipes is compiled and run as tests of this package.

#[cfg(doctest)]
#[doc = include_str!("../../src/guide/recipes.md")]
struct Recipes;
