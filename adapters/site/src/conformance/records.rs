//! Rules for what a site keeps for a coordinator.

use super::{Breach, check, refused, succeeds};
use crate::{RECORD_MAX, RecordKey, Site, SiteErrorKind};

/// More than any platform is likely to keep in one piece, and not to be made shorter.
const LARGE: usize = 300_000;

pub(super) async fn records(site: &dyn Site) -> Result<(), Breach> {
    let rule = "a key of letters and a slash is one";
    let key = |text: &str| text.parse::<RecordKey>();
    let (Ok(one), Ok(two)) = (key("conformance/one"), key("conformance/one/two")) else {
        return check(rule, false, "it is refused");
    };
    let incompressible = incompressible(LARGE);
    let (small, large) = (b"small\0".as_slice(), incompressible.as_slice());

    let rule = "nothing is kept under a key that nobody used";
    let before = succeeds(rule, site.kept_keys().await)?;
    check(rule, !before.contains(&one) && !before.contains(&two), &before)?;
    kept_is(site, rule, &one, None).await?;

    let rule = "a record that is empty is kept, is one, and is kept twice as well as once";
    succeeds(rule, site.keep(&one, None, b"").await)?;
    succeeds(rule, site.keep(&one, None, b"").await)?;
    kept_is(site, rule, &one, Some(b"")).await?;
    refused(rule, site.keep(&one, None, small).await, &[SiteErrorKind::Conflict])?;

    let rule = "a record is replaced if it is the expected one, twice as well as once";
    for (expected, body) in [(b"".as_slice(), small), (small, large)] {
        succeeds(rule, site.keep(&one, Some(expected), body).await)?;
        succeeds(rule, site.keep(&one, Some(expected), body).await)?;
        kept_is(site, rule, &one, Some(body)).await?;
    }

    other_than_expected(site, &one, &two, large).await?;

    let rule = "two records do not disturb one another, and both are listed, sorted";
    succeeds(rule, site.keep(&two, None, small).await)?;
    kept_is(site, rule, &one, Some(large)).await?;
    kept_is(site, rule, &two, Some(small)).await?;
    keys_are(site, rule, &before, &[&one, &two]).await?;

    let rule = "a large record that becomes a small one leaves nothing of it behind";
    succeeds(rule, site.keep(&one, Some(large), small).await)?;
    kept_is(site, rule, &one, Some(small)).await?;
    keys_are(site, rule, &before, &[&one, &two]).await?;

    let rule = "a record may have RECORD_MAX bytes and not one more";
    let mut body = vec![0; RECORD_MAX];
    succeeds(rule, site.keep(&one, Some(small), &body).await)?;
    kept_is(site, rule, &one, Some(&body)).await?;
    body.push(0);
    let more = site.keep(&two, Some(small), &body).await;
    refused(rule, more, &[SiteErrorKind::Exhausted])?;
    kept_is(site, rule, &two, Some(small)).await?;

    let rule = "what is forgotten is gone, nothing else is, and forgetting twice is harmless";
    succeeds(rule, site.forget(&one).await)?;
    succeeds(rule, site.forget(&one).await)?;
    kept_is(site, rule, &one, None).await?;
    kept_is(site, rule, &two, Some(small)).await?;
    keys_are(site, rule, &before, &[&two]).await?;

    let rule = "under a forgotten key a record can be kept in place of nothing";
    succeeds(rule, site.keep(&one, None, large).await)?;
    kept_is(site, rule, &one, Some(large)).await?;
    succeeds(rule, site.forget(&one).await)?;
    succeeds(rule, site.forget(&two).await)?;
    keys_are(site, rule, &before, &[]).await
}

/// `large` is kept under `one`, and nothing under `two`.
async fn other_than_expected(
    site: &dyn Site,
    one: &RecordKey,
    two: &RecordKey,
    large: &[u8],
) -> Result<(), Breach> {
    let rule = "a record that is not the expected one stays as it is";
    let mut likeness = large.to_vec();
    if let Some(last) = likeness.last_mut() {
        *last ^= 1;
    }
    let shorter = large.split_last().map_or(large, |(_, rest)| rest);
    let others = [b"".as_slice(), b"small\0", likeness.as_slice(), shorter];
    for expected in others.map(Some).into_iter().chain([None]) {
        let made = site.keep(one, expected, b"other").await;
        refused(rule, made, &[SiteErrorKind::Conflict])?;
        kept_is(site, rule, one, Some(large)).await?;
    }
    let rule = "no record is kept in place of one that is not there";
    for expected in [b"".as_slice(), large] {
        let made = site.keep(two, Some(expected), b"other").await;
        refused(rule, made, &[SiteErrorKind::Conflict])?;
        kept_is(site, rule, two, None).await?;
    }
    Ok(())
}

async fn kept_is(
    site: &dyn Site,
    rule: &'static str,
    key: &RecordKey,
    expected: Option<&[u8]>,
) -> Result<(), Breach> {
    let kept = succeeds(rule, site.kept(key).await)?;
    let told = |record: Option<&[u8]>| {
        record.map_or_else(|| "nothing".to_owned(), |body| format!("{} bytes", body.len()))
    };
    let found = format!("{key}: {}, not {}", told(kept.as_deref()), told(expected));
    check(rule, kept.as_deref() == expected, found)
}

/// Those that were there before, and `ours`.
async fn keys_are(
    site: &dyn Site,
    rule: &'static str,
    before: &[RecordKey],
    ours: &[&RecordKey],
) -> Result<(), Breach> {
    let keys = succeeds(rule, site.kept_keys().await)?;
    let mut expected: Vec<_> = before.iter().chain(ours.iter().copied()).cloned().collect();
    expected.sort();
    check(rule, keys == expected, (&keys, &expected))
}

/// Bytes that no compression makes fewer.
fn incompressible(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let numbers = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()
    });
    numbers.flatten().take(length).collect()
}
