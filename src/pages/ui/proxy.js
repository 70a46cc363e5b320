'use strict';

// The status page of a proxy, from /proxy/status.

const ROWS_MAX = 100;

const refusals = (status) => sum(status.tenants.map((one) => sum(Object.values(one.refused))));
const CHARTS = [
  { name: 'Calls of clients', unit: '/s', value: rate('grpc_server_started_total') },
  { name: 'Ranges answered from the cache', unit: '/s', value: rate('etcd_grpc_proxy_cache_hits_total'),
    legend: (now) => {
      const hits = total(now, 'etcd_grpc_proxy_cache_hits_total');
      const all = hits + total(now, 'etcd_grpc_proxy_cache_misses_total');
      return all ? (100 * hits / all).toFixed(1) + ' % of all ranges since the start' : 'no range yet';
    } },
  { name: 'Ranges passed to the cluster', unit: '/s', value: rate('etcd_grpc_proxy_cache_misses_total') },
  { name: 'Reads of the cluster’s revision', unit: '/s', value: rate('watershed_proxy_cache_read_index_total'),
    legend: (now) => {
      const reads = total(now, 'watershed_proxy_cache_read_index_total');
      const answers = byLabel(now, 'watershed_proxy_cache_answers_total', 'read').get('linearizable') || 0;
      return reads ? (answers / reads).toFixed(1) + ' linearizable answers share one' : 'no linearizable answer yet';
    } },
  { name: 'Watches of clients', unit: '', value: level('etcd_debugging_mvcc_watcher_total'),
    legend: (now) => short(total(now, 'watershed_proxy_upstream_watches')) + ' upstream, on ' +
      short(total(now, 'etcd_debugging_mvcc_watch_stream_total')) + ' streams of clients' },
  { name: 'Events to clients', unit: '/s', value: rate('etcd_debugging_mvcc_events_total'),
    legend: (now) => short(total(now, 'watershed_proxy_upstream_events_total')) + ' from the cluster for ' +
      short(total(now, 'etcd_debugging_mvcc_events_total')) + ' to clients since the start' },
  { name: 'Refused by limits of tenants', unit: '/s', value: (now, before, seconds) => Math.max(0, refusals(now) - refusals(before)) / seconds,
    isShown: (now) => now.tenants.length > 0,
    legend: (now) => short(refusals(now)) + ' since the start' },
  ...PROCESS_CHARTS,
];

function rights(tenant) {
  const found = [];
  if (tenant.read_only) found.push('reads only');
  if (tenant.admin) found.push('admin');
  if (tenant.compact !== 'deny') found.push('compact: ' + tenant.compact);
  if (tenant.upstream) found.push('user of its own');
  return found.join(', ');
}

// The limits of a tenant, and those that have refused something without being in its file.
function limitsOf(tenant) {
  const given = tenant.limits.map((limit) => ({ one: tenant, limit, refused: tenant.refused[limit.limit] || 0 }));
  const others = Object.entries(tenant.refused).filter(([name]) => tenant.limits.every((limit) => limit.limit !== name));
  return given.concat(others.map(([name, refused]) => ({ one: tenant, limit: { limit: name, max: null, used: null }, refused })));
}

// The tenants with the most calls now, and the limits that are nearest to what they allow or have refused the most.
function showTenants(now, before, seconds) {
  byId('of-tenants').hidden = now.tenants.length === 0;
  const earlier = new Map((before ? before.tenants : []).map((one) => [one.name, one]));
  const perSecond = (one, field) => {
    const then = earlier.get(one.name);
    return then && seconds > 0 ? Math.max(0, one[field] - then[field]) / seconds : 0;
  };
  const busiest = now.tenants.map((one) => ({ one, calls: perSecond(one, 'requests') }))
    .sort((a, b) => b.calls - a.calls || b.one.requests - a.one.requests);
  const rows = busiest.slice(0, ROWS_MAX).map(({ one, calls }) => [
    one.name, one.namespace, rights(one), number(one.requests === null ? '' : short(one.requests)), number(short(calls)),
    number(bytes(perSecond(one, 'bytes'))), number(short(one.watches)), number(one.in_flight), number(one.waiting),
  ]);
  const more = now.tenants_total - rows.length;
  if (more > 0) rows.push([{ text: more + ' more', kind: 'none' }]);
  fill('tenants', rows, 'none');
  const share = (limit) => limit.used === null ? 0 : limit.used / Math.max(limit.max, 1);
  const limits = now.tenants.flatMap(limitsOf).sort((a, b) => share(b.limit) - share(a.limit) || b.refused - a.refused);
  const size = (limit) => limit.limit.includes('bytes') ? bytes : short;
  fill('limits', limits.slice(0, ROWS_MAX).map(({ one, limit, refused }) => [
    one.name, limit.limit, number(limit.used === null ? '' : size(limit)(limit.used)),
    number(limit.max === null ? '' : size(limit)(limit.max)),
    limit.used === null ? '' : { meter: share(limit) }, number(refused ? short(refused) : ''),
  ]), 'No tenant has a limit.');
}

function show(now, before, seconds) {
  const uptime = duration(now.up_ms / 1000);
  byId('about').textContent = 'version ' + now.version + ', up ' + uptime + ', cluster ' + (now.cluster_id || 'not known yet') +
    ', ' + (now.tenants.length ? short(now.tenants_total) + ' tenants'
      : now.namespaces.map((one) => one.prefix ? 'namespace ' + one.prefix : 'all keys').join(', '));
  fill('endpoints', now.endpoints.map((one) => [one.endpoint, { text: one.state, kind: one.state }, one.reason || '']), 'none');
  const cached = now.namespaces.flatMap((space) => space.cached.map((one) => [
    space.prefix, one.range, { text: one.state.replace('_', ' '), kind: one.state }, number(short(one.keys)), number(bytes(one.bytes)),
    number(one.revision || ''), one.age_ms === null ? '' : duration(one.age_ms / 1000) + ' ago',
  ]));
  fill('cached', cached, 'No range is cached: the cache is off, or nothing has been read.');
  showTenants(now, before, seconds);
  const passed = [...byLabel(now, 'watershed_proxy_cache_passed_total', 'reason')].sort((a, b) => b[1] - a[1]);
  fill('passed', passed.map(([reason, count]) => [reason.replaceAll('_', ' '), number(short(count))]), 'none');
  const calls = byLabel(now, 'grpc_server_started_total', 'grpc_method');
  const earlier = before ? byLabel(before, 'grpc_server_started_total', 'grpc_method') : calls;
  const rows = [...calls].sort((a, b) => b[1] - a[1]).map(([method, count]) =>
    [method, number(short(count)), number(seconds ? short((count - (earlier.get(method) || 0)) / seconds) : '–')]);
  fill('calls', rows, 'none yet');
}

follow('/proxy/status', 'proxy', CHARTS, show);
