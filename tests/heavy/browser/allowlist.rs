//! The allowlist editor, which judges entries like the service.

use fantoccini::key::Key;
use keygate::Allowlist;
use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::visit;

const FIELD: &str = "Address or range";

/// Valid and invalid entries, typed one at a time. The library decides which are valid.
const ENTRIES: &str = "
    10.0.0.0/8 10.0.0.1 10.0.0.1/32 0.0.0.0/0 255.255.255.255
    192.0.2.0/24 192.0.2.1/24 192.0.2.0/33 192.0.2.0/-1 192.0.2.0/+8 192.0.2.0/08 192.0.2.0/
    192.0.2.0/8/8 192.0.2.0/a 192.0.2.256 192.0.2 192.0.2.1.1 192.0.2. .192.0.2
    010.0.0.1 10.0.0.00 0x7f.0.0.1 2130706433 127.1 192.1.1.1/0 192.1.1.1/7 0.0.0.1/8
    :: ::/0 ::1 ::1/128 ::1/64 2001:db8::/32 2001:DB8::/32 2001:db8::1/32 2001:db8::1/15
    2001:0db8:0000:0000:0000:0000:0000:0001 2001:db8::/129 2001:db8::/0128
    1:2:3:4:5:6:7:8 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 1:2:3:4:5:6:7 1:2:3:4:5:6:7:8:9
    1::2::3 12345:: :1 g::1 fe80::1%eth0 fe80::1%25eth0 dead:beef::cafe/ffff
    ::ffff:192.0.2.1 ::FFFF:c000:201 ::ffff:10.0.0.0/104 ::ffff:10.0.0.1/104 ::ffff:0:0/96
    ::ffff:0:0/95 ::ffff:192.1.1.1/96 ::ffff:192.1.1.1/95 ::ffff:192.1.1.1/24
    64:ff9b::192.0.2.1 ::192.0.2.01 [::1] ::1]:80/[ ::1]@[::2 example.com
";

async fn open(browser: &Browser) {
    browser.press("Create API Key").await;
    browser.fill("Name", "restricted").await;
}

/// The entries in the list, read from the names of their remove buttons.
async fn listed(browser: &Browser) -> Vec<String> {
    let names = browser.names(Role::BUTTON).await;
    names.iter().filter_map(|name| name.strip_prefix("Remove ")).map(str::to_owned).collect()
}

async fn add(browser: &Browser, entry: &str) {
    browser.fill(FIELD, entry).await;
    browser.press("Add").await;
}

async fn create(browser: &Browser) {
    browser.press("Create key").await;
    browser.done().await;
}

#[test]
#[ignore = "needs chromium"]
fn added_and_removed_entries_take_effect() {
    visit(async |browser, service| {
        open(browser).await;
        assert_eq!(listed(browser).await, [""; 0]);
        add(browser, "10.0.0.0/8").await;
        assert_eq!(browser.value(FIELD).await, "");
        browser.sees_focus(FIELD).await;
        // Enter adds an entry and never submits the form.
        browser.key(Key::Enter).await;
        browser.keys("2001:DB8::/32").await;
        browser.key(Key::Enter).await;
        assert_eq!(listed(browser).await, ["10.0.0.0/8", "2001:DB8::/32"]);
        // Several entries at once, as if pasted.
        add(browser, "192.0.2.1, 192.0.2.2;192.0.2.3").await;
        assert_eq!(listed(browser).await.len(), 5);
        browser.press("Remove 10.0.0.0/8").await;
        browser.sees_focus("Remove 2001:DB8::/32").await;
        browser.press("Remove 192.0.2.3").await;
        browser.sees_focus("Remove 192.0.2.2").await;
        // Text left in the field counts as an entry.
        browser.fill(FIELD, "203.0.113.7").await;
        assert_eq!(service.keys().len(), 0);
        create(browser).await;
        let list = json!(["2001:db8::/32", "192.0.2.1", "192.0.2.2", "203.0.113.7"]);
        assert_eq!(service.key("restricted")["ip_allowlist"], list);
        let name = browser.cell_text("restricted", "Name").await;
        assert!(name.contains("Restricted to 4 entries"), "{name}");
    });
}

#[test]
#[ignore = "needs chromium"]
fn an_invalid_entry_is_reported_at_the_field_while_it_is_typed() {
    visit(async |browser, service| {
        open(browser).await;
        add(browser, "::ffff:1.2.3.4").await;
        for (entry, problem) in [
            ("10.0.0.1/8", "10.0.0.1/8: bits are set after the prefix; did you mean 10.0.0.0/8?"),
            ("2001:db8::1/32", "did you mean 2001:db8::/32?"),
            ("010.0.0.1", "010.0.0.1: numbers must not begin with 0, which can mean octal"),
            ("fe80::1%eth0", "fe80::1%eth0: remove the zone (% and what follows)"),
            ("10.0.0.0/33", "10.0.0.0/33: the prefix length must be 0 to 32"),
            ("2001:db8::/129", "2001:db8::/129: the prefix length must be 0 to 128"),
            ("1.2.3.4", "1.2.3.4: already on the list"),
            ("::ffff:1.2.3.4/128", "already on the list"),
            ("example.com", "example.com: not an IP address or CIDR range"),
        ] {
            add(browser, entry).await;
            browser.sees_error(FIELD, problem).await;
            assert_eq!(browser.value(FIELD).await, entry, "the typed text stays");
            assert_eq!(listed(browser).await, ["::ffff:1.2.3.4"]);
            // The field loses the focus: the error is shown then, too.
            browser.fill(FIELD, "").await;
            assert_eq!(browser.error_at(FIELD).await, "", "{entry}");
            browser.keys(entry).await;
            browser.key(Key::Tab).await;
            browser.sees_error(FIELD, problem).await;
            // The form cannot be submitted with it.
            browser.press("Create key").await;
            browser.sees_error(FIELD, problem).await;
            browser.sees_focus(FIELD).await;
        }
        // While typing, an error is shown only if more text cannot fix it.
        browser.fill(FIELD, "10.0.").await;
        assert_eq!(browser.error_at(FIELD).await, "");
        browser.keys("x").await;
        browser.sees_error(FIELD, "10.0.x: not an IP address").await;
        browser.key(Key::Backspace).await;
        browser.keys("0.0/16").await;
        assert_eq!(browser.error_at(FIELD).await, "", "the error disappears when it is fixed");
        // Of several entries, the first invalid one and the rest stay in the field.
        add(browser, "10.1.0.0/16 10.2.0.0/15 10.3.0.0/15 10.4.0.0/16").await;
        browser.sees_error(FIELD, "10.3.0.0/15: bits are set").await;
        assert_eq!(browser.value(FIELD).await, "10.3.0.0/15 10.4.0.0/16");
        assert_eq!(listed(browser).await, ["::ffff:1.2.3.4", "10.1.0.0/16", "10.2.0.0/15"]);
        assert_eq!(service.keys().len(), 0);
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_51st_entry_is_refused_in_the_form() {
    visit(async |browser, service| {
        open(browser).await;
        let entries: Vec<_> = (1..=50).map(|n| format!("192.0.2.{n}")).collect();
        add(browser, &entries.join(" ")).await;
        assert_eq!(listed(browser).await, entries);
        assert_eq!(browser.error_at(FIELD).await, "");
        add(browser, "192.0.2.51").await;
        browser.sees_error(FIELD, "A key has at most 50 addresses.").await;
        assert_eq!(listed(browser).await.len(), 50);
        browser.press("Create key").await;
        browser.sees_error(FIELD, "A key has at most 50 addresses.").await;
        assert_eq!(service.keys().len(), 0);
        browser.press("Remove 192.0.2.1").await;
        browser.press("Add").await;
        assert_eq!(listed(browser).await.len(), 50);
        create(browser).await;
        let list = service.key("restricted")["ip_allowlist"].as_array().unwrap().clone();
        assert_eq!((list.len(), &list[49]), (50, &json!("192.0.2.51")));
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_form_accepts_the_entries_that_the_service_accepts_and_no_others() {
    visit(async |browser, service| {
        open(browser).await;
        let mut wrong = Vec::new();
        let mut canonical = Vec::new();
        for entry in ENTRIES.split_whitespace() {
            let list = Allowlist::parse([entry]);
            add(browser, entry).await;
            let accepted = listed(browser).await == [entry];
            let error = browser.error_at(FIELD).await;
            if accepted != list.is_ok() || accepted != error.is_empty() {
                wrong.push(format!("{entry}: {list:?}, but accepted {accepted}, {error:?}"));
            }
            // If the page suggests an entry, the service suggests the same.
            let suggests = |text: &str| text.split("; ").nth(1).map(str::to_owned);
            let suggested = list.as_ref().err().and_then(|error| suggests(&error.to_string()));
            if suggested != suggests(&error) {
                wrong.push(format!("{entry}: {suggested:?}, but {error:?}"));
            }
            if accepted {
                browser.press(&format!("Remove {entry}")).await;
            }
            canonical.extend(list.into_iter().flat_map(|list| list.entries()));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        let count = ENTRIES.split_whitespace().count();
        assert!(canonical.len() >= 20 && count - canonical.len() >= 20);

        // All valid entries together are accepted. Equivalent entries become one.
        canonical.sort();
        canonical.dedup();
        let is_valid = |entry: &&str| Allowlist::parse([*entry]).is_ok();
        for entry in ENTRIES.split_whitespace().filter(is_valid) {
            add(browser, entry).await;
        }
        browser.fill(FIELD, "").await;
        assert_eq!(listed(browser).await.len(), canonical.len());
        create(browser).await;
        let stored = service.key("restricted")["ip_allowlist"].clone();
        let mut stored: Vec<String> = serde_json::from_value(stored).unwrap();
        stored.sort();
        assert_eq!(stored, canonical);
    });
}
