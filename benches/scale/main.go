// Command scale grants many leases, each with an id that is known beforehand and some with a key, and prints how that went as one
// JSON object. It is the part of benches/scale.py that `watershed bench` has no load for.
//
// usage: scale -endpoint HOST:PORT -leases N [-ttl SECONDS] [-first ID] [-prefix PREFIX] [-keyed-every N] [-connections N] [-callers N]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	// Attempts at one request: a member that has too many of them refuses some.
	attempts = 20
	// Pause before the next attempt.
	pause = 100 * time.Millisecond
	// Longest wait for one answer.
	patience = time.Minute
)

type plan struct {
	endpoint, prefix     string
	leases, first, ttl   int64
	keyedEvery           int64
	connections, callers int
}

// What a run prints.
type outcome struct {
	Leases    int64   `json:"leases"`
	Keys      int64   `json:"keys"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"leases_per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	Max       float64 `json:"max_ms"`
	// Requests that were refused and sent again.
	Again int64 `json:"sent_again"`
}

func main() {
	var plan plan
	flag.StringVar(&plan.endpoint, "endpoint", "127.0.0.1:2379", "member or proxy")
	flag.Int64Var(&plan.leases, "leases", 1000, "leases to grant")
	flag.Int64Var(&plan.first, "first", 1, "id of the first; the others follow")
	flag.Int64Var(&plan.ttl, "ttl", 3600, "seconds of each")
	flag.StringVar(&plan.prefix, "prefix", "leased/", "what the keys of leases start with; the id follows")
	flag.Int64Var(&plan.keyedEvery, "keyed-every", 0, "every so many leases one has a key; 0 is none")
	flag.IntVar(&plan.connections, "connections", 8, "connections")
	flag.IntVar(&plan.callers, "callers", 256, "concurrent callers, spread over them")
	flag.Parse()
	outcome, err := plan.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(outcome); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (p plan) run() (outcome, error) {
	if p.connections < 1 || p.callers < p.connections {
		return outcome{}, fmt.Errorf("-callers %d must not be below -connections %d, and that not below 1", p.callers, p.connections)
	}
	clients := make([]*clientv3.Client, p.connections)
	for i := range clients {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{p.endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			return outcome{}, fmt.Errorf("connect to %s: %w", p.endpoint, err)
		}
		defer client.Close()
		clients[i] = client
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var next, keys, again atomic.Int64
	latencies := make([][]time.Duration, p.callers)
	var callers sync.WaitGroup
	start := time.Now()
	for number := range p.callers {
		caller := caller{p, clients[number%len(clients)], &again}
		callers.Go(func() {
			for index := next.Add(1) - 1; index < p.leases && ctx.Err() == nil; index = next.Add(1) - 1 {
				sent := time.Now()
				if err := caller.grant(ctx, p.first+index); err != nil {
					cancel(fmt.Errorf("grant lease %d: %w", p.first+index, err))
					return
				}
				latencies[number] = append(latencies[number], time.Since(sent))
				if p.keyedEvery > 0 && index%p.keyedEvery == 0 {
					if err := caller.put(ctx, p.first+index); err != nil {
						cancel(fmt.Errorf("put a key of lease %d: %w", p.first+index, err))
						return
					}
					keys.Add(1)
				}
			}
		})
	}
	callers.Wait()
	if err := context.Cause(ctx); err != nil {
		return outcome{}, err
	}
	took, all := time.Since(start).Seconds(), slices.Concat(latencies...)
	slices.Sort(all)
	return outcome{
		Leases: p.leases, Keys: keys.Load(), Seconds: took, PerSecond: float64(p.leases) / took,
		P50: share(all, 0.5), P99: share(all, 0.99), Max: share(all, 1), Again: again.Load(),
	}, nil
}

// Milliseconds within which this share of all, which are sorted, were answered.
func share(all []time.Duration, share float64) float64 {
	if len(all) == 0 {
		return 0
	}
	return float64(all[min(int(float64(len(all))*share), len(all)-1)].Microseconds()) / 1000
}

type caller struct {
	plan
	client *clientv3.Client
	again  *atomic.Int64
}

func (c caller) grant(ctx context.Context, id int64) error {
	// The client's own Grant lets the member choose the id.
	service := etcdserverpb.NewLeaseClient(c.client.ActiveConnection())
	return c.persistently(ctx, func(ctx context.Context, attempt int) error {
		_, err := service.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: id, TTL: c.ttl})
		// An attempt before this one may have been carried out although its answer was an error.
		if attempt > 0 && errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseExist) {
			return nil
		}
		return err
	})
}

func (c caller) put(ctx context.Context, id int64) error {
	return c.persistently(ctx, func(ctx context.Context, _ int) error {
		_, err := c.client.Put(ctx, fmt.Sprintf("%s%016d", c.prefix, id), "", clientv3.WithLease(clientv3.LeaseID(id)))
		return err
	})
}

// Sends a request until it is answered well, as often as is allowed.
func (c caller) persistently(ctx context.Context, send func(context.Context, int) error) error {
	for attempt := 0; ; attempt++ {
		limited, cancel := context.WithTimeout(ctx, patience)
		err := send(limited, attempt)
		cancel()
		if err == nil || attempt == attempts-1 || ctx.Err() != nil {
			return err
		}
		c.again.Add(1)
		time.Sleep(pause)
	}
}
