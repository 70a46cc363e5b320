package tier

import (
	"context"
	"fmt"
	"os"
	"time"
)

// Check is one thing that a program checks of an environment: of a tier and of what it opened on it.
type Check[Environment any] struct {
	Name string
	Run  func(context.Context, Environment) error
}

// Program starts a tier, opens an environment on it and checks it.
type Program[Environment any] struct {
	Name string
	// Open is called when both processes have been started; what it returns beside the environment closes it.
	Open func(context.Context, *Tier) (Environment, func(), error)
	// Checks run one after the other, each for at most Timeout.
	Checks  []Check[Environment]
	Timeout time.Duration
}

// Main is the program: its arguments are those of the process, MEMBER [PROXY FLAG…]. It prints a line for each check and ends the
// process, with 1 when one failed.
func (p Program[Environment]) Main() {
	if len(os.Args) < 2 {
		fmt.Fprintf(os.Stderr, "usage: %s MEMBER [PROXY FLAG…]\n", p.Name)
		os.Exit(2)
	}
	failed, err := p.run(os.Args[1:2], os.Args[2:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "FAILED start: %v\n", err)
	}
	if failed || err != nil {
		os.Exit(1)
	}
}

func (p Program[Environment]) run(member, proxy []string) (failed bool, err error) {
	folder, err := os.MkdirTemp("", p.Name+"-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(folder)
	tier, err := New(folder, "http", member, proxy)
	if err != nil {
		return false, err
	}
	defer tier.Stop()
	for _, start := range []func() error{tier.StartMember, tier.StartProxy} {
		if err := start(); err != nil {
			return false, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	environment, closeIt, err := p.Open(ctx, tier)
	if err != nil {
		return false, fmt.Errorf("%w\n%s", err, tier.Logs())
	}
	defer closeIt()
	for _, check := range p.Checks {
		failed = !p.check(check, environment) || failed
	}
	return failed, nil
}

func (p Program[Environment]) check(check Check[Environment], environment Environment) bool {
	ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
	defer cancel()
	begun := time.Now()
	if err := check.Run(ctx, environment); err != nil {
		fmt.Printf("FAILED %s: %v\n", check.Name, err)
		return false
	}
	fmt.Printf("ok %s (%d ms)\n", check.Name, time.Since(begun).Milliseconds())
	return true
}

// UntilNil repeats an attempt of at most five seconds until it succeeds, for as long as ctx lasts.
func UntilNil(ctx context.Context, attempt func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := attempt(limited)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}
