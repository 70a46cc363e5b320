use std::collections::HashMap;

use bytes::Bytes;

use super::TenantMatch;
use super::entry::Entry;
use super::fields::Wrong;

/// Checks what no tenant can be checked for alone.
pub(super) fn check(entries: &[Entry]) -> Result<(), Wrong> {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        if let Some(other) = by_name.insert(&entry.tenant.name, number) {
            let at = entries[other].name.line;
            return Err(entry
                .name
                .wrong(format!("{:?} is the name of the tenant at line {at} too", entry.tenant.name)));
        }
    }
    check_namespaces(entries, &by_name)?;
    check_matches(entries)
}

/// A namespace within another one has to be stated by the tenant that sees more, or the tenants see each other's keys
/// by mistake.
fn check_namespaces(entries: &[Entry], by_name: &HashMap<&str, usize>) -> Result<(), Wrong> {
    let mut by_prefix: HashMap<&[u8], Vec<usize>> = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        by_prefix.entry(&entry.tenant.namespace).or_default().push(number);
    }
    let states = |outer: usize, inner: usize| entries[outer].tenant.contains.contains(&entries[inner].tenant.name);
    for (inner, entry) in entries.iter().enumerate() {
        let namespace = &entry.tenant.namespace;
        for length in 1..=namespace.len() {
            for &outer in by_prefix.get(&namespace[..length]).into_iter().flatten() {
                let same = length == namespace.len();
                if outer == inner || states(outer, inner) || (same && (states(inner, outer) || outer > inner)) {
                    continue;
                }
                let other = &entries[outer];
                let how = if same { "is the same as" } else { "lies within" };
                return Err(entry.namespace.wrong(format!(
                    "{} {how} that of {:?} at line {}, which does not have {:?} in \"contains\"",
                    shown(namespace),
                    other.tenant.name,
                    other.namespace.line,
                    entry.tenant.name
                )));
            }
        }
    }
    for entry in entries {
        for stated in &entry.contains {
            let inner = by_name.get(stated.value.as_str()).map(|&inner| &entries[inner].tenant);
            match inner {
                None => return Err(stated.wrong(format!("there is no tenant {:?}", stated.value))),
                Some(inner) if inner.namespace.starts_with(&entry.tenant.namespace) => {}
                Some(_) => {
                    let reason = format!("the namespace of {:?} does not lie within this one", stated.value);
                    return Err(stated.wrong(reason));
                }
            }
        }
    }
    Ok(())
}

/// No match may hold whenever one of another tenant does: those requests would be of two tenants.
fn check_matches(entries: &[Entry]) -> Result<(), Wrong> {
    let mut known: HashMap<&TenantMatch, (usize, usize)> = HashMap::new();
    for (number, entry) in entries.iter().enumerate() {
        for one in &entry.matches {
            if let Some((_, line)) = known.insert(&one.value, (number, one.line)) {
                return Err(one.wrong(format!("the same stands at line {line}")));
            }
        }
    }
    for (number, entry) in entries.iter().enumerate() {
        for one in &entry.matches {
            let wider = wider(&one.value).find_map(|wider| known.get(&wider).copied());
            if let Some((other, line)) = wider.filter(|(other, _)| *other != number) {
                return Err(one.wrong(format!(
                    "whatever this matches is matched by {:?} at line {line}, too, and would be of two tenants",
                    entries[other].tenant.name
                )));
            }
        }
    }
    Ok(())
}

/// All matches that ask for a part of what this one asks for.
fn wider(one: &TenantMatch) -> impl Iterator<Item = TenantMatch> {
    const CRITERIA: u8 = 6;
    (1..1u8 << CRITERIA).filter_map(move |kept| {
        let keeps = |number: u8| kept & (1 << number) != 0;
        let text = |number, field: &Option<String>| field.clone().filter(|_| keeps(number));
        let wider = TenantMatch {
            listen: one.listen.filter(|_| keeps(0)),
            sni: text(1, &one.sni),
            common_name: text(2, &one.common_name),
            dns_name: text(3, &one.dns_name),
            spiffe_id: text(4, &one.spiffe_id),
            user: text(5, &one.user),
        };
        (wider != *one).then_some(wider)
    })
}

fn shown(namespace: &Bytes) -> String {
    format!("\"{}\"", namespace.escape_ascii())
}
