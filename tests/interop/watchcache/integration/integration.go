// Package integration takes the place of go.etcd.io/etcd/tests/v3/framework/integration when the tests of etcd's cache library run
// against programs of our choice (watchcache.sh): a cluster is a member in a process of its own, and a proxy in front of it
// if one is named.
//
//	INTEROP_MEMBER   the program of the member
//	INTEROP_PROXY    the program and the flags of the proxy, as one line; without it clients meet the member
package integration

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"watershed.test/tier"
)

// ThroughProxy is what the tests ask before they skip what etcd's own proxy cannot do. Nothing is skipped here.
const ThroughProxy = false

// BeforeTest has nothing to do here.
func BeforeTest(testing.TB) {}

// ClusterConfig has what the tests of the cache library set.
type ClusterConfig struct {
	Size int
}

// Cluster is one member, and its proxy if there is one.
type Cluster struct {
	tier   *tier.Tier
	client *clientv3.Client
}

// NewCluster starts both and waits until they answer.
func NewCluster(t testing.TB, config *ClusterConfig) *Cluster {
	t.Helper()
	if config.Size != 1 {
		t.Fatalf("a cluster of %d members is not supported here", config.Size)
	}
	store, err := tier.New(t.TempDir(), "http", []string{os.Getenv("INTEROP_MEMBER")}, strings.Fields(os.Getenv("INTEROP_PROXY")))
	if err != nil {
		t.Fatal(err)
	}
	cluster := &Cluster{tier: store}
	// Terminate is called after the client is closed; a test that does not come so far leaves nothing either.
	t.Cleanup(store.Stop)
	if err := store.StartMember(); err != nil {
		t.Fatal(err)
	}
	if err := store.StartProxy(); err != nil {
		t.Fatal(err)
	}
	cluster.client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{store.Endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	// A read, because the tests know which revision their first write has.
	for deadline := time.Now().Add(60 * time.Second); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err = cluster.client.Get(ctx, "ready")
		cancel()
		if err == nil {
			return cluster
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", store.Endpoint, err)
		}
	}
}

// Client is a client of the proxy, or of the member without one.
func (c *Cluster) Client(int) *clientv3.Client { return c.client }

// Terminate ends the cluster.
func (c *Cluster) Terminate(t testing.TB) {
	if err := c.client.Close(); err != nil {
		t.Log("close:", err)
	}
	c.tier.Stop()
	if t.Failed() {
		t.Log(c.tier.Logs())
	}
}
