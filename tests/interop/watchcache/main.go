// Command watchcache checks etcd's cache library (go.etcd.io/etcd/cache/v3) on a member behind a proxy. The library keeps a prefix
// current by a watch and asks that watch for progress before it answers a consistent read, which etcd's own proxy does not
// pass on.
//
// usage: watchcache MEMBER [PROXY FLAG…]    the program of the member, and the command line of the proxy
package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	cache "go.etcd.io/etcd/cache/v3"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"watershed.test/tier"
)

type environment struct {
	tier   *tier.Tier
	client *clientv3.Client
	// Goes past the proxy: the same store under its own keys.
	direct *clientv3.Client
	cache  *cache.Cache
}

const prefix = "watched/"

var checks = []tier.Check[*environment]{
	{Name: "consistent reads of a quiet prefix", Run: consistentReads},
	{Name: "many watchers", Run: manyWatchers},
	{Name: "many caches", Run: manyCaches},
	{Name: "restart of the member", Run: restart},
	{Name: "compaction", Run: compaction},
}

func main() {
	tier.Program[*environment]{Name: "watchcache", Open: open, Checks: checks, Timeout: time.Minute}.Main()
}

func open(ctx context.Context, store *tier.Tier) (*environment, func(), error) {
	at := &environment{tier: store}
	var err error
	if at.client, err = dial(store.Endpoint); err != nil {
		return nil, nil, err
	}
	if at.direct, err = dial(store.MemberEndpoint); err != nil {
		return nil, nil, err
	}
	if err := answers(ctx, at.client); err != nil {
		return nil, nil, err
	}
	// What it keeps for watchers that lag, in revisions and in answers.
	at.cache, err = cache.New(at.client, prefix, cache.WithHistoryWindowSize(4096), cache.WithPerWatcherBufferSize(256))
	if err != nil {
		return nil, nil, err
	}
	closeIt := func() {
		at.cache.Close()
		_ = at.client.Close()
		_ = at.direct.Close()
	}
	return at, closeIt, at.cache.WaitReady(ctx)
}

func dial(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
}

// answers waits until a read succeeds.
func answers(ctx context.Context, client *clientv3.Client) error {
	return tier.UntilNil(ctx, func(ctx context.Context) error {
		_, err := client.Get(ctx, "ready")
		return err
	})
}

// move writes outside of the prefix, twice: the library does not pass on progress to exactly the revision that it waits for
// (the one after its last event), so that a read after one such write waits for the next one, whatever the server does.
func (e *environment) move(ctx context.Context) error {
	for range 2 {
		if _, err := e.client.Put(ctx, "elsewhere", ""); err != nil {
			return err
		}
	}
	return nil
}

// The revision moves by keys outside of the prefix, of which the cache gets no event: each read needs progress of the watch.
func consistentReads(ctx context.Context, at *environment) error {
	var took []time.Duration
	for round := range 20 {
		want := strconv.Itoa(round)
		if _, err := at.client.Put(ctx, prefix+"value", want); err != nil {
			return err
		}
		for range 5 {
			if err := at.move(ctx); err != nil {
				return err
			}
			begun := time.Now()
			answer, err := at.cache.Get(ctx, prefix+"value")
			if err != nil {
				return fmt.Errorf("round %d, after %s: %w", round, time.Since(begun).Round(time.Millisecond), err)
			}
			took = append(took, time.Since(begun))
			if len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != want {
				return fmt.Errorf("round %d: %v", round, answer.Kvs)
			}
		}
	}
	slices.Sort(took)
	// The library sends a request for progress every 100 ms.
	fmt.Printf("  %d consistent reads: median %s, longest %s\n", len(took),
		took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	return nil
}

// Each of 1,000 watchers gets every event of its key, in order.
func manyWatchers(ctx context.Context, at *environment) error {
	const keys, watchers, rounds = 50, 1000, 20
	key := func(number int) string { return fmt.Sprintf("%smany/%02d", prefix, number%keys) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer, err := at.client.Get(ctx, "ready")
	if err != nil {
		return err
	}
	failures := make(chan error, watchers)
	var waiting sync.WaitGroup
	for number := range watchers {
		events := at.cache.Watch(ctx, key(number), clientv3.WithRev(answer.Header.Revision+1))
		waiting.Go(func() { failures <- values(ctx, events, 0, rounds) })
	}
	for round := range rounds {
		for number := range keys {
			if _, err := at.client.Put(ctx, key(number), strconv.Itoa(round)); err != nil {
				return err
			}
		}
	}
	waiting.Wait()
	for range watchers {
		if err := <-failures; err != nil {
			return err
		}
	}
	return nil
}

// follow watches a key from now on; the values 0..rounds-1 have come when the channel yields nil.
func (e *environment) follow(ctx context.Context, key string, rounds int) (<-chan error, error) {
	answer, err := e.client.Get(ctx, "ready")
	if err != nil {
		return nil, err
	}
	events := e.cache.Watch(ctx, key, clientv3.WithRev(answer.Header.Revision+1))
	watched := make(chan error, 1)
	go func() { watched <- values(ctx, events, 0, rounds) }()
	return watched, nil
}

// values waits for the values from..to-1, one after the other.
func values(ctx context.Context, events clientv3.WatchChan, from, to int) error {
	for next := from; next < to; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for value %d: %w", next, ctx.Err())
		case answer, open := <-events:
			if !open {
				return fmt.Errorf("waiting for value %d: the watch ended", next)
			}
			if err := answer.Err(); err != nil {
				return fmt.Errorf("waiting for value %d: %w", next, err)
			}
			for _, event := range answer.Events {
				if string(event.Kv.Value) != strconv.Itoa(next) {
					return fmt.Errorf("value %d expected, not %q of revision %d", next, event.Kv.Value, event.Kv.ModRevision)
				}
				next++
			}
		}
	}
	return nil
}

// 20 caches of prefixes beside one another, read while all of them are written.
func manyCaches(ctx context.Context, at *environment) error {
	const caches, rounds = 20, 10
	failures := make(chan error, caches)
	for number := range caches {
		go func() {
			failures <- func() error {
				own := fmt.Sprintf("cache/%02d/", number)
				kept, err := cache.New(at.client, own)
				if err != nil {
					return err
				}
				defer kept.Close()
				if err := kept.WaitReady(ctx); err != nil {
					return err
				}
				for round := range rounds {
					put, err := at.client.Put(ctx, own+"value", strconv.Itoa(round))
					if err != nil {
						return err
					}
					if err := at.move(ctx); err != nil {
						return err
					}
					answer, err := kept.Get(ctx, own, clientv3.WithPrefix())
					if err != nil {
						return err
					}
					if len(answer.Kvs) != 1 || answer.Kvs[0].ModRevision != put.Header.Revision {
						return fmt.Errorf("cache %d, round %d: %v", number, round, answer.Kvs)
					}
				}
				return nil
			}()
		}()
	}
	for range caches {
		if err := <-failures; err != nil {
			return err
		}
	}
	return nil
}

// The member is killed and started again: the cache goes on, and its watchers miss nothing.
func restart(ctx context.Context, at *environment) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const rounds = 3
	key := prefix + "restart"
	watched, err := at.follow(ctx, key, rounds)
	if err != nil {
		return err
	}
	for round := range rounds {
		if _, err := at.client.Put(ctx, key, strconv.Itoa(round)); err != nil {
			return err
		}
		at.tier.KillMember()
		if err := at.tier.StartMember(); err != nil {
			return err
		}
		if err := answers(ctx, at.client); err != nil {
			return err
		}
		if err := at.read(ctx, key, strconv.Itoa(round)); err != nil {
			return err
		}
	}
	return <-watched
}

// read wants a value of the cache, and lets it be late: the library gives up after three seconds.
func (e *environment) read(ctx context.Context, key, want string) error {
	for {
		if err := e.move(ctx); err != nil {
			return err
		}
		answer, err := e.cache.Get(ctx, key)
		if err == nil {
			if len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != want {
				return fmt.Errorf("%s: %v", key, answer.Kvs)
			}
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

// Compacted up to the newest revision again and again: whoever misses nothing goes on. Then the member is away while the
// watches are behind a compaction: the library begins anew.
func compaction(ctx context.Context, at *environment) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const rounds = 10
	key := prefix + "compaction"
	watched, err := at.follow(ctx, key, rounds)
	if err != nil {
		return err
	}
	for round := range rounds + 1 {
		if round == rounds {
			if err := <-watched; err != nil {
				return err
			}
		}
		if _, err := at.client.Put(ctx, key, strconv.Itoa(round)); err != nil {
			return err
		}
		if err := at.move(ctx); err != nil {
			return err
		}
		moved, err := at.direct.Get(ctx, "elsewhere")
		if err != nil {
			return err
		}
		if _, err := at.direct.Compact(ctx, moved.Header.Revision); err != nil {
			return err
		}
		if round == rounds {
			at.tier.KillMember()
			if err := at.tier.StartMember(); err != nil {
				return err
			}
			if err := answers(ctx, at.client); err != nil {
				return err
			}
		}
		if err := at.read(ctx, key, strconv.Itoa(round)); err != nil {
			return err
		}
	}
	return nil
}
