// Command goclient checks a store with the official Go client of etcd: keys, transactions, watches with progress
// requests, leases, and the client-side recipes (lock, election, software transactional memory). With the certificate of an
// authority it does so over TLS as a user, and checks users, roles and tokens as well (secured.go).
//
// usage: goclient ENDPOINT [AUTHORITY]
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

type check struct {
	name string
	run  func(context.Context, *clientv3.Client) error
}

var checks = []check{
	{"kv", keysAndValues},
	{"txn", transactions},
	{"watch", watches},
	{"watch progress", progress},
	{"lease", leases},
	{"lock", lock},
	{"election", election},
	{"stm", stm},
	{"errors", knownErrors},
	{"cluster", cluster},
}

// Every run has keys of its own, so that it can be repeated against one store.
var base = fmt.Sprintf("goclient/%d/", os.Getpid())

func main() {
	if len(os.Args) != 2 && len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: goclient ENDPOINT [AUTHORITY]")
		os.Exit(2)
	}
	if len(os.Args) == 3 {
		authority = os.Args[2]
	}
	config := clientv3.Config{}
	if authority != "" {
		config.Username, config.Password = "app", password
		checks = append(checks, securedChecks...)
	}
	client, err := dial(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "connect:", err)
		os.Exit(1)
	}
	defer client.Close()
	failed := false
	for _, check := range checks {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		err := check.run(ctx, client)
		cancel()
		if err != nil {
			failed = true
			fmt.Printf("FAILED %s: %v\n", check.name, err)
			continue
		}
		fmt.Printf("ok %s\n", check.name)
	}
	if failed {
		os.Exit(1)
	}
}

// The certificate of the authority that signed those of the servers; empty for plain connections.
var authority string

// A client of the endpoint that was given.
func dial(config clientv3.Config) (*clientv3.Client, error) {
	config.Endpoints, config.DialTimeout, config.Logger = []string{os.Args[1]}, 30*time.Second, zap.NewNop()
	if authority != "" {
		pem, err := os.ReadFile(authority)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("no certificate in " + authority)
		}
		config.TLS = &tls.Config{RootCAs: roots}
	}
	return clientv3.New(config)
}

func expect[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: got %v, want %v", what, got, want)
	}
	return nil
}

func keysAndValues(ctx context.Context, c *clientv3.Client) error {
	prefix := base + "kv/"
	var first int64
	for i := range 5 {
		answer, err := c.Put(ctx, prefix+strconv.Itoa(i), strconv.Itoa(4-i))
		if err != nil {
			return err
		}
		if i == 0 {
			first = answer.Header.Revision
		}
	}
	sorted, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend), clientv3.WithLimit(2))
	if err != nil {
		return err
	}
	if err := errors.Join(expect("count", sorted.Count, 5), expect("more", sorted.More, true), expect("first by value", string(sorted.Kvs[0].Key), prefix+"4")); err != nil {
		return err
	}
	old, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithSerializable())
	if err != nil {
		return err
	}
	if err := expect("keys at the first revision", len(old.Kvs), 1); err != nil {
		return err
	}
	deleted, err := c.Delete(ctx, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	return errors.Join(expect("deleted", deleted.Deleted, 5), expect("previous pairs", len(deleted.PrevKvs), 5))
}

func transactions(ctx context.Context, c *clientv3.Client) error {
	key := base + "txn"
	create := func() (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).
			If(clientv3.Compare(clientv3.Version(key), "=", 0)).
			Then(clientv3.OpPut(key, "1"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpGet(key)}, nil)).
			Else(clientv3.OpGet(key)).
			Commit()
	}
	won, err := create()
	if err != nil {
		return err
	}
	lost, err := create()
	if err != nil {
		return err
	}
	nested := won.Responses[1].GetResponseTxn().Responses[0].GetResponseRange()
	return errors.Join(
		expect("first", won.Succeeded, true),
		expect("second", lost.Succeeded, false),
		expect("nested read", string(nested.Kvs[0].Value), "1"),
		expect("read", string(lost.Responses[0].GetResponseRange().Kvs[0].Value), "1"),
	)
}

func watches(ctx context.Context, c *clientv3.Client) error {
	prefix := base + "watch/"
	put, err := c.Put(ctx, prefix+"0", "past")
	if err != nil {
		return err
	}
	start := put.Header.Revision
	events := c.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithPrevKV(), clientv3.WithCreatedNotify(), clientv3.WithFragment())
	for i := 1; i < 50; i++ {
		if _, err := c.Put(ctx, prefix+strconv.Itoa(i%3), strconv.Itoa(i)); err != nil {
			return err
		}
	}
	deleted, err := c.Delete(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	seen, last := 0, int64(0)
	for answer := range events {
		if err := answer.Err(); err != nil {
			return err
		}
		for _, event := range answer.Events {
			if event.Kv.ModRevision < last {
				return fmt.Errorf("revision %d after %d", event.Kv.ModRevision, last)
			}
			last = event.Kv.ModRevision
			if !event.IsCreate() && event.PrevKv == nil {
				return fmt.Errorf("no previous pair for %v", event)
			}
			seen++
		}
		if seen == 53 {
			break
		}
	}
	return errors.Join(expect("events", seen, 53), expect("last revision", last, deleted.Header.Revision))
}

func progress(ctx context.Context, c *clientv3.Client) error {
	key := base + "progress"
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	events := c.Watch(watching, key, clientv3.WithCreatedNotify())
	if answer := <-events; !answer.Created {
		return fmt.Errorf("expected the confirmation, got %+v", answer)
	}
	put, err := c.Put(ctx, base+"elsewhere", "")
	if err != nil {
		return err
	}
	for {
		if err := c.RequestProgress(watching); err != nil {
			return err
		}
		select {
		case answer := <-events:
			if err := answer.Err(); err != nil {
				return err
			}
			if !answer.IsProgressNotify() {
				return fmt.Errorf("expected progress, got %+v", answer)
			}
			if answer.Header.Revision >= put.Header.Revision {
				return nil
			}
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func leases(ctx context.Context, c *clientv3.Client) error {
	key := base + "lease"
	lease, err := c.Grant(ctx, 6)
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, key, "", clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	alive, stop := context.WithCancel(ctx)
	answers, err := c.KeepAlive(alive, lease.ID)
	if err != nil {
		stop()
		return err
	}
	begun := time.Now()
	for time.Since(begun) < 9*time.Second {
		answer, open := <-answers
		if !open {
			stop()
			return errors.New("the keep-alive ended by itself")
		}
		if answer.TTL != 6 {
			stop()
			return fmt.Errorf("TTL %d", answer.TTL)
		}
	}
	stop()
	left, err := c.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	if err := errors.Join(expect("granted", left.GrantedTTL, 6), expect("keys", len(left.Keys), 1)); err != nil {
		return err
	}
	if _, err := c.Revoke(ctx, lease.ID); err != nil {
		return err
	}
	gone, err := c.Get(ctx, key)
	if err != nil {
		return err
	}
	return expect("keys after the revoke", gone.Count, 0)
}

func lock(ctx context.Context, c *clientv3.Client) error {
	var group sync.WaitGroup
	var held, entered int
	failures := make(chan error, 4)
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			session, err := concurrency.NewSession(c, concurrency.WithTTL(10), concurrency.WithContext(ctx))
			if err != nil {
				failures <- err
				return
			}
			defer session.Close()
			mutex := concurrency.NewMutex(session, base+"lock")
			if err := mutex.Lock(ctx); err != nil {
				failures <- err
				return
			}
			held++
			if held != 1 {
				failures <- fmt.Errorf("%d hold the lock", held)
			}
			time.Sleep(20 * time.Millisecond)
			entered++
			held--
			if err := mutex.Unlock(ctx); err != nil {
				failures <- err
			}
		}()
	}
	group.Wait()
	close(failures)
	var err error
	for failure := range failures {
		err = errors.Join(err, failure)
	}
	return errors.Join(err, expect("holders, one after the other", entered, 4))
}

func election(ctx context.Context, c *clientv3.Client) error {
	name := base + "election"
	var sessions [2]*concurrency.Session
	var candidates [2]*concurrency.Election
	for i := range sessions {
		session, err := concurrency.NewSession(c, concurrency.WithTTL(10), concurrency.WithContext(ctx))
		if err != nil {
			return err
		}
		defer session.Close()
		sessions[i], candidates[i] = session, concurrency.NewElection(session, name)
	}
	observing, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := candidates[0].Observe(observing)
	if err := candidates[0].Campaign(ctx, "one"); err != nil {
		return err
	}
	if err := expect("leader", string((<-seen).Kvs[0].Value), "one"); err != nil {
		return err
	}
	if err := candidates[0].Proclaim(ctx, "uno"); err != nil {
		return err
	}
	if err := expect("proclaimed", string((<-seen).Kvs[0].Value), "uno"); err != nil {
		return err
	}
	second := make(chan error, 1)
	go func() { second <- candidates[1].Campaign(ctx, "two") }()
	// A session that closes gives the leadership away with its lease.
	if err := sessions[0].Close(); err != nil {
		return err
	}
	if err := <-second; err != nil {
		return err
	}
	return expect("next leader", string((<-seen).Kvs[0].Value), "two")
}

func stm(ctx context.Context, c *clientv3.Client) error {
	accounts := []string{base + "stm/a", base + "stm/b", base + "stm/c"}
	for _, account := range accounts {
		if _, err := c.Put(ctx, account, "100"); err != nil {
			return err
		}
	}
	number := func(stm concurrency.STM, key string) int {
		value, _ := strconv.Atoi(stm.Get(key))
		return value
	}
	var group sync.WaitGroup
	failures := make(chan error, 32)
	for worker := range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for turn := range 8 {
				from, to := accounts[(worker+turn)%3], accounts[(worker+turn+1)%3]
				_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
					stm.Put(from, strconv.Itoa(number(stm, from)-7))
					stm.Put(to, strconv.Itoa(number(stm, to)+7))
					return nil
				}, concurrency.WithAbortContext(ctx))
				if err != nil {
					failures <- err
				}
			}
		}()
	}
	group.Wait()
	close(failures)
	for failure := range failures {
		return failure
	}
	answer, err := c.Get(ctx, base+"stm/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	sum := 0
	for _, kv := range answer.Kvs {
		value, err := strconv.Atoi(string(kv.Value))
		if err != nil {
			return err
		}
		sum += value
	}
	return expect("money", sum, 300)
}

func knownErrors(ctx context.Context, c *clientv3.Client) error {
	_, empty := c.Put(ctx, "", "")
	_, future := c.Get(ctx, base, clientv3.WithRev(1<<40))
	_, lease := c.Put(ctx, base+"errors", "", clientv3.WithLease(4711))
	for _, pair := range []struct{ got, want error }{
		{empty, rpctypes.ErrEmptyKey},
		{future, rpctypes.ErrFutureRev},
		{lease, rpctypes.ErrLeaseNotFound},
	} {
		if !errors.Is(pair.got, pair.want) {
			return fmt.Errorf("got %v, want %v", pair.got, pair.want)
		}
	}
	return nil
}

func cluster(ctx context.Context, c *clientv3.Client) error {
	members, err := c.MemberList(ctx)
	if err != nil {
		return err
	}
	if len(members.Members) == 0 {
		return errors.New("no members")
	}
	status, err := c.Status(ctx, c.Endpoints()[0])
	if err != nil {
		return err
	}
	if members.Members[0].ID == 0 {
		return nil // A proxy, which lists itself.
	}
	ids := make([]uint64, 0, len(members.Members))
	for _, member := range members.Members {
		ids = append(ids, member.ID)
	}
	sort.Slice(ids, func(i, j int) bool { return ids[i] < ids[j] })
	at := sort.Search(len(ids), func(i int) bool { return ids[i] >= status.Leader })
	if at == len(ids) || ids[at] != status.Leader {
		return fmt.Errorf("leader %x is not among %x", status.Leader, ids)
	}
	return nil
}
