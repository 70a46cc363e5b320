#!/usr/bin/env python3
"""Runs etcd's own suites, from a checkout of its source, against a server of the caller's choice.

Each test function has its own process, its own network and process namespace (so ports never collide and nothing
outlives a test) and its own folder to work in. A failed function of the suites leaves goroutines behind, for which
every later test of the same process would be skipped.

Needs root, Go, curl, iproute2 and util-linux. The test programs are built from the checkout, into the folder of results.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

# Suite -> folder below tests/ in the checkout, build tags.
SUITES = {
    'common': ('common', 'e2e'),
    'e2e': ('e2e', ''),
    'e2e-proxy': ('e2e', 'cluster_proxy'),
}
OUTCOME = re.compile(r'^\s*--- (PASS|FAIL|SKIP): (\S+)', re.M)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkout', type=pathlib.Path, help="etcd's source at the tag whose suites are wanted")
    parser.add_argument('suite', choices=SUITES)
    parser.add_argument('bin_dir', type=pathlib.Path, help='folder with etcd, etcdctl and etcdutl: what is tested')
    parser.add_argument('out', type=pathlib.Path, help='results.jsonl and one log for each test function')
    parser.add_argument('--run', default='.', help='test functions whose name this regular expression finds')
    parser.add_argument('--names', type=pathlib.Path, help='file of test functions, one a line: only these')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--limit', type=int, default=300, help='seconds for one test function')
    parser.add_argument('--programs', type=pathlib.Path, help='folder of test programs built before (SUITE.test)')
    return parser.parse_args()


def build(args):
    """The suite's test program, built unless it is there."""
    folder, tags = SUITES[args.suite]
    program = ((args.programs or args.out) / f'{args.suite}.test').resolve()
    if not program.exists():
        command = ['go', 'test', '-c', '-o', str(program)] + (['-tags', tags] if tags else []) + [f'./{folder}']
        subprocess.run(command, cwd=args.checkout / 'tests', check=True)
    return program


def names(args, program):
    folder = args.checkout / 'tests' / SUITES[args.suite][0]
    listed = subprocess.run([program, '-test.list', '.'], cwd=folder, capture_output=True, text=True, check=True).stdout
    wanted = re.compile(args.run)
    chosen = set(args.names.read_text().split()) if args.names else None
    return [name for name in listed.split()
            if name.startswith('Test') and wanted.search(name) and (chosen is None or name in chosen)]


def run(args, program, name):
    """One test function in a folder that has what the suites look for at relative paths."""
    root = pathlib.Path(tempfile.mkdtemp(prefix='etcd-suites-'))
    try:
        folder = root / 'tests' / SUITES[args.suite][0]
        folder.mkdir(parents=True)
        (root / 'tmp').mkdir()
        (root / 'tests' / 'fixtures').symlink_to(args.checkout.resolve() / 'tests' / 'fixtures')
        (root / 'etcd.conf.yml.sample').symlink_to(args.checkout.resolve() / 'etcd.conf.yml.sample')
        environment = {key: value for key, value in os.environ.items() if not key.startswith('ETCD')}
        environment['TMPDIR'] = str(root / 'tmp')
        environment.setdefault('E2E_TEST_MINIMAL', 'false')
        # The tests of network addresses want one that is not loopback's. Behind that route a name server would be silent; here
        # there is none, so that etcd's JSON gateway, which asks for records of its own address, does not wait for ten seconds.
        (root / 'resolv.conf').write_text('nameserver 127.0.0.1\n')
        inside = ('ip link set lo up; ip address add 10.9.9.9/32 dev lo; ip route add default dev lo; '
                  f'mount --bind {root}/resolv.conf /etc/resolv.conf; '
                  f'exec nice {program} -test.run "^{name}$" -test.v -test.timeout {args.limit - 10}s '
                  f'--bin-dir={args.bin_dir.resolve()}')
        command = ['unshare', '--net', '--pid', '--fork', '--kill-child', '--mount-proc', 'sh', '-c', inside]
        start = time.monotonic()
        log = args.out / f'{name}.log'
        with log.open('w') as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT,
                                       env=environment, start_new_session=True)
            try:
                process.wait(args.limit)
                otherwise = 'DIED'
            except subprocess.TimeoutExpired:
                otherwise = 'TIMEOUT'
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        outcomes = {test: outcome for outcome, test in OUTCOME.findall(log.read_text(errors='replace'))}
        return {
            'test': name,
            'result': outcomes.get(name, otherwise),
            'seconds': round(time.monotonic() - start, 1),
            'subs': {test: outcome for test, outcome in outcomes.items() if '/' in test},
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    program = build(args)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as workers, (args.out / 'results.jsonl').open('a') as results:
        pending = [workers.submit(run, args, program, name) for name in names(args, program)]
        for finished in concurrent.futures.as_completed(pending):
            row = finished.result()
            results.write(json.dumps(row) + '\n')
            results.flush()
            subs = list(row['subs'].values())
            counts = ' / '.join(str(subs.count(outcome)) for outcome in ('PASS', 'FAIL', 'SKIP'))
            print(f"{row['result']:7} {row['test']} {row['seconds']} s, sub-tests {counts}", flush=True)


if __name__ == '__main__':
    main()
