module watershed.test/watchcache

go 1.26

require (
	go.etcd.io/etcd/api/v3 v3.7.1
	go.etcd.io/etcd/cache/v3 v3.7.1
	go.etcd.io/etcd/client/v3 v3.7.1
	go.uber.org/zap v1.27.1
	watershed.test/tier v0.0.0
)

replace watershed.test/tier => ../tier
