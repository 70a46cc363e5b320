// Package testserver takes the place of k8s.io/apiserver/pkg/storage/etcd3/testserver when the tests of that module run against
// programs of our choice (kubernetes.sh puts it into a copy of the module): each store they ask for is a member in a process
// of its own, and a proxy in front of it if one is named.
//
//	INTEROP_MEMBER   the program of the member
//	INTEROP_PROXY    the program and the flags of the proxy, as one line; without it clients meet the member
package testserver

import (
	"context"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"watershed.test/tier"
)

// NewTestConfig is a configuration that a test may change before it is given to RunEtcd, which takes its TLS, its quota and its
// interval of progress notifications from it.
func NewTestConfig(testing.TB) *embed.Config {
	config := embed.NewConfig()
	config.ListenClientUrls = []url.URL{{Scheme: "http"}}
	config.AdvertiseClientUrls = []url.URL{{Scheme: "http"}}
	return config
}

// RunEtcd starts a member with what the configuration says, and the proxy; both end with the test.
func RunEtcd(t testing.TB, config *embed.Config) *kubernetes.Client {
	t.Helper()
	if config == nil {
		config = NewTestConfig(t)
	}
	member := []string{
		os.Getenv("INTEROP_MEMBER"),
		"--quota-backend-bytes=" + strconv.FormatInt(config.QuotaBackendBytes, 10),
		"--watch-progress-notify-interval=" + config.WatchProgressNotifyInterval.String(),
	}
	proxy := strings.Fields(os.Getenv("INTEROP_PROXY"))
	if info := config.ClientTLSInfo; info.CertFile != "" {
		served := []string{"--cert-file=" + info.CertFile, "--key-file=" + info.KeyFile, "--trusted-ca-file=" + info.TrustedCAFile}
		member = append(member, served...)
		if len(proxy) > 0 {
			proxy = append(proxy, served...)
			proxy = append(proxy, "--cert="+info.CertFile, "--key="+info.KeyFile, "--cacert="+info.TrustedCAFile)
		}
	}
	scheme := config.AdvertiseClientUrls[0].Scheme
	store, err := tier.New(t.TempDir(), scheme, member, proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		store.Stop()
		if t.Failed() {
			t.Log(store.Logs())
		}
	})
	if err := store.StartMember(); err != nil {
		t.Fatal(err)
	}
	if err := store.StartProxy(); err != nil {
		t.Fatal(err)
	}
	tls, err := config.ClientTLSInfo.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.New(clientv3.Config{
		TLS: tls, Endpoints: []string{scheme + "://" + store.Endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	// A read, because the tests know which revision their first write has.
	for deadline := time.Now().Add(60 * time.Second); ; {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err = client.KV.Get(ctx, "ready")
		cancel()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v", store.Endpoint, err)
		}
	}
	// The tests count the requests of the storage layer.
	recorder := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.KV = storagetesting.NewKVRecorder(client.KV, recorder)
	client.Kubernetes = recorder
	return client
}
