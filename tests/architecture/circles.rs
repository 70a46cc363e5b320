//! Import circles: files of one room that name each other, directly or through others.
//!
//! A re-export is followed to the file that has the item, so that a `mod.rs` which lists what its room shows is part
//! of no circle. Code of tests is left out.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Leaf, as_strs, is_word, module_of, next, room_of, root, sources, tokens, tree, without_tests};

type Module = Vec<String>;

/// Files in circles that have no reason in the `mod.rs` of their room, by room. These numbers only go down; a new
/// circle is opened, or its reason is written down.
const WITHOUT_REASON: &[(&str, usize)] = &[];

/// How the tour of a room gives a reason: "Import circle: `a.rs`, `b/c.rs`: why."
const REASON: &str = "Import circle: ";

/// A name that a file gives to something of ours.
struct Name {
    path: Module,
    is_shown: bool,
}

/// What one file says.
#[derive(Default)]
struct File {
    /// What its `use` lines name.
    names: BTreeMap<String, Name>,
    /// Paths in its code, from the crate root; those of `use` lines that only show an item are left out.
    paths: BTreeSet<Module>,
}

/// Reads one file.
fn read(module: &[&str], source: &str, modules: &BTreeSet<Module>) -> File {
    let tokens = without_tests(&tokens(source));
    let mut file = File::default();
    let mut code = Vec::new();
    let mut braces: Vec<Option<String>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let token = tokens[at].1.as_str();
        let previous = at.checked_sub(1).map_or("", |index| tokens[index].1.as_str());
        match token {
            "{" => {
                let is_module = at >= 2 && tokens[at - 2].1 == "mod";
                braces.push(is_module.then(|| previous.to_owned()));
            }
            "}" => {
                braces.pop();
            }
            "use" => {
                let mut leaves = Vec::new();
                let begin = at + 1;
                at = begin;
                let mut base = Vec::new();
                if let Some(start) = start_of(&tokens, &mut at, module, &braces) {
                    base = start;
                }
                let is_ours = at > begin || modules.contains(&child(module, &tokens[begin].1));
                if at == begin {
                    base = module.iter().map(|&part| part.to_owned()).collect();
                }
                tree(&tokens, &mut at, &base, &mut leaves);
                let is_shown = matches!(previous, "pub" | ")");
                if is_ours {
                    for Leaf { mut path, mut name } in leaves {
                        if path.last().is_some_and(|last| last == "self") {
                            path.pop();
                            if name == "self" {
                                name = path.last().cloned().unwrap_or_default();
                            }
                        }
                        file.names.insert(name, Name { path, is_shown });
                    }
                }
                continue;
            }
            word if is_word(word) && previous != "::" && next(&tokens, at) == "::" => {
                let mut path_at = at;
                let start = start_of(&tokens, &mut path_at, module, &braces);
                let is_absolute = start.is_some();
                let mut path = start.unwrap_or_default();
                while let Some((_, word)) = tokens.get(path_at).filter(|(_, word)| is_word(word)) {
                    path.push(word.clone());
                    if next(&tokens, path_at) != "::" {
                        break;
                    }
                    path_at += 2;
                }
                code.push((is_absolute, path));
            }
            _ => {}
        }
        at += 1;
    }
    for (is_absolute, path) in code {
        if is_absolute {
            file.paths.insert(path);
        } else if let Some(name) = path.first().and_then(|first| file.names.get(first)) {
            file.paths.insert(name.path.iter().chain(&path[1..]).cloned().collect());
        } else if path.first().is_some_and(|first| modules.contains(&child(module, first))) {
            file.paths.insert(module.iter().map(|&part| part.to_owned()).chain(path).collect());
        }
    }
    let named: Vec<Module> = file
        .names
        .values()
        .filter(|name| !name.is_shown && !modules.contains(&name.path))
        .map(|name| name.path.clone())
        .collect();
    file.paths.extend(named);
    file
}

fn child(module: &[&str], name: &str) -> Module {
    module.iter().copied().chain([name]).map(str::to_owned).collect()
}

/// Takes `crate::`, `self::` or some `super::` from `at` on; answers with the module they mean.
fn start_of(tokens: &[(usize, String)], at: &mut usize, module: &[&str], braces: &[Option<String>]) -> Option<Module> {
    let mut base: Module = module.iter().map(|&part| part.to_owned()).collect();
    base.extend(braces.iter().flatten().cloned());
    let begin = *at;
    while next(tokens, *at) == "::" {
        match tokens[*at].1.as_str() {
            "crate" => base.clear(),
            "watershed" if module == ["main"] => base.clear(),
            "self" => {}
            "super" => {
                base.pop();
            }
            _ => break,
        }
        *at += 2;
    }
    (*at > begin).then_some(base)
}

/// The file that has what a path means; none for a path that ends at a module.
fn owner(path: &[String], files: &BTreeMap<Module, File>, depth: usize) -> Option<Module> {
    let mut module = Module::new();
    for (at, part) in path.iter().enumerate() {
        let inner: Module = module.iter().chain([part]).cloned().collect();
        if files.contains_key(&inner) {
            module = inner;
            continue;
        }
        let name = files.get(&module).and_then(|file| file.names.get(part));
        return match name {
            Some(name) if depth < 8 => {
                let rest: Module = name.path.iter().chain(&path[at + 1..]).cloned().collect();
                owner(&rest, files, depth + 1)
            }
            _ => Some(module),
        };
    }
    None
}

/// Who names whom.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// Reads these files: module and text.
fn graph(texts: &[(Module, String)]) -> Graph {
    let modules: BTreeSet<Module> = texts.iter().map(|(module, _)| module.clone()).collect();
    let files: BTreeMap<Module, File> =
        texts.iter().map(|(module, text)| (module.clone(), read(&as_strs(module), text, &modules))).collect();
    let edges = |module: &Module, file: &File| -> BTreeSet<Module> {
        let owners = file.paths.iter().filter_map(|path| owner(path, &files, 0));
        owners.filter(|owner| owner != module).collect()
    };
    files.iter().map(|(module, file)| (module.clone(), edges(module, file))).collect()
}

fn reachable(graph: &Graph, from: &Module) -> BTreeSet<Module> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.clone()];
    while let Some(module) = open.pop() {
        for next in graph.get(&module).into_iter().flatten() {
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    seen
}

/// The largest sets of files in which each reaches each.
fn circles(graph: &Graph) -> Vec<BTreeSet<Module>> {
    let reach: BTreeMap<&Module, BTreeSet<Module>> =
        graph.keys().map(|module| (module, reachable(graph, module))).collect();
    let mut found: Vec<BTreeSet<Module>> = Vec::new();
    for (&module, reached) in &reach {
        if !reached.contains(module) || found.iter().any(|circle| circle.contains(module)) {
            continue;
        }
        found.push(reached.iter().filter(|other| reach[other].contains(module)).cloned().collect());
    }
    found
}

fn sources_without_tests() -> Vec<(Module, String)> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let is_test = |module: &Module| module.iter().any(|part| part == "tests" || part == "testing");
    files
        .iter()
        .map(|file| (module_of(file), std::fs::read_to_string(file).expect("source is readable")))
        .filter(|(module, _)| !is_test(module))
        .collect()
}

/// A file as a `mod.rs` names it: below the folder of its room.
fn file_name(module: &Module) -> String {
    let folder = root().join("src").join(module.iter().collect::<std::path::PathBuf>());
    let depth = room_of(&as_strs(module)).split("::").count();
    let inner = module[depth..].join("/");
    match folder.join("mod.rs").exists() {
        true if inner.is_empty() => "mod.rs".into(),
        true => format!("{inner}/mod.rs"),
        false => format!("{inner}.rs"),
    }
}

/// The sets of files for which the `mod.rs` of a room gives a reason.
fn reasons(text: &str) -> Vec<BTreeSet<String>> {
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let tour = lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    let found = tour.split(REASON).skip(1).filter_map(|circle| circle.split_once("`: "));
    found.map(|(files, _)| files.split('`').filter(|part| part.ends_with(".rs")).map(str::to_owned).collect()).collect()
}

/// The circles of each room.
fn by_room(graph: &Graph) -> BTreeMap<String, Vec<BTreeSet<Module>>> {
    let mut rooms: BTreeMap<String, Vec<BTreeSet<Module>>> = BTreeMap::new();
    for circle in circles(graph) {
        let of: BTreeSet<String> = circle.iter().map(|module| room_of(&as_strs(module))).collect();
        assert_eq!(of.len(), 1, "a circle over rooms: {circle:?}");
        rooms.entry(of.into_iter().collect()).or_default().push(circle);
    }
    rooms
}

/// Shows the numbers: `cargo test --test architecture circle -- --nocapture`.
#[test]
fn every_import_circle_has_a_reason() {
    let graph = graph(&sources_without_tests());
    assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 500, "found who names whom");
    let mut wrong = Vec::new();
    let mut total = 0;
    for (room, circles) in &by_room(&graph) {
        let tour = root().join("src").join(room.replace("::", "/")).join("mod.rs");
        let reasons = reasons(&std::fs::read_to_string(tour).unwrap_or_default());
        let (mut files, mut unexplained) = (0, 0);
        let mut unused = reasons.clone();
        for circle in circles {
            let names: BTreeSet<String> = circle.iter().map(file_name).collect();
            files += circle.len();
            if !reasons.iter().any(|files| files.is_superset(&names)) {
                unexplained += circle.len();
            }
            unused.retain(|files| !files.is_superset(&names));
            for module in circle {
                let named: Vec<String> = graph[module].intersection(circle).map(file_name).collect();
                println!("    {} names {}", file_name(module), named.join(", "));
            }
            println!();
        }
        println!("{room}: {} circles, {files} files, {unexplained} of them without a reason\n", circles.len());
        total += files;
        let allowed = WITHOUT_REASON.iter().find(|(name, _)| name == room).map_or(0, |(_, files)| *files);
        if unexplained > allowed {
            wrong.push(format!("{room}: {unexplained} files in circles without a reason, {allowed} allowed"));
        }
        wrong.extend(unused.iter().map(|files| format!("{room}: a reason for a circle that is not there: {files:?}")));
    }
    println!("all rooms: {total} files in circles");
    assert!(wrong.is_empty(), "give the reason in the room's mod.rs, or open the circle:\n{}", wrong.join("\n"));
}

#[test]
fn a_planted_circle_is_found() {
    let found = |files: &[(&str, &str)]| -> Vec<String> {
        let texts: Vec<(Module, String)> = files
            .iter()
            .map(|(module, text)| {
                (module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect(), (*text).to_owned())
            })
            .collect();
        let circles = circles(&graph(&texts));
        circles
            .iter()
            .map(|circle| circle.iter().map(|module| module.join("::")).collect::<Vec<_>>().join(" "))
            .collect()
    };
    let none: [&str; 0] = [];
    let room = ("room", "mod a; mod b; mod c; pub use self::a::{A, Other as Seen}; pub(super) use b::B;");
    // By the module itself, through the room's list, through a renamed item, inline, over three files.
    assert_eq!(found(&[room, ("room::a", "use super::b::B;"), ("room::b", "use super::a::A;")]), ["room::a room::b"]);
    assert_eq!(found(&[room, ("room::a", "use super::B;"), ("room::b", "use crate::room::A;")]), ["room::a room::b"]);
    assert_eq!(found(&[room, ("room::a", "use super::B as X;"), ("room::b", "use super::Seen;")]), ["room::a room::b"]);
    assert_eq!(
        found(&[room, ("room::a", "use super::b; fn f() { b::g() }"), ("room::b", "fn g() { super::a::f() }")]),
        ["room::a room::b"]
    );
    assert_eq!(
        found(&[
            room,
            ("room::a", "use super::B;"),
            ("room::b", "use super::c::C;"),
            ("room::c", "use super::{A, B};")
        ]),
        ["room::a room::b room::c"]
    );
    // A file and the files in its folder; a `mod.rs` with items of its own.
    assert_eq!(
        found(&[room, ("room::a", "mod inner; fn f() { inner::g() }"), ("room::a::inner", "use super::Item;")]),
        ["room::a room::a::inner"]
    );
    // A list of names is no circle, nor is code of tests or a module that is named and not used.
    assert_eq!(found(&[room, ("room::a", "use super::B;"), ("room::b", "pub struct B;")]), none);
    assert_eq!(
        found(&[room, ("room::a", "use super::B;"), ("room::b", "#[cfg(test)] mod tests { use super::super::a::A; }")]),
        none
    );
    assert_eq!(
        found(&[room, ("room::a", "use super::B;"), ("room::b", "#[cfg(test)]\nuse super::{A, Seen};\nfn f() {}")]),
        none
    );
    assert_eq!(
        reasons("//! Import circle: `a.rs`, `b/c.rs`: both, and `mod.rs`.\n//! Other."),
        [BTreeSet::from(["a.rs".to_owned(), "b/c.rs".to_owned()])]
    );
}
