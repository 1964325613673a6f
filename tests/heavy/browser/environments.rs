//! Environments on the page.

use keygate::KeyFormat;
use keygate::manager::KeyManagerBuilder;

use crate::service::visit_with;

#[test]
#[ignore = "needs chromium"]
fn a_key_is_created_in_the_environment_that_is_chosen() {
    let two = |builder: KeyManagerBuilder| {
        let test = KeyFormat::new("vsp_sk_test_").unwrap();
        builder.environment("live", KeyFormat::default()).environment("test", test)
    };
    visit_with(
        two,
        |_| (),
        async |browser, _, ()| {
            for (name, choice, prefix, environment) in [
                ("first", None, "vsp_sk_", "live"),
                ("second", Some("test (vsp_sk_test_…)"), "vsp_sk_test_", "test"),
            ] {
                browser.press("Create API Key").await;
                browser.fill("Name", name).await;
                if let Some(choice) = choice {
                    browser.choose("Environment", choice).await;
                }
                browser.press("Create key").await;
                browser.done().await;
                let key = browser.cell_text(name, "Key Prefix").await;
                assert!(key.starts_with(prefix) && key.ends_with(environment), "{name}: {key}");
            }
        },
    );
}
