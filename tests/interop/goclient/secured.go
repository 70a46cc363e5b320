package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// What clients.sh has made: root, and app and reader, who may write and read the keys below goclient/.
const password = "a password"

// How long a token is valid there.
const tokenTTL = 3 * time.Second

var securedChecks = []check{
	{"logins", logins},
	{"permissions", permissions},
	{"denied watch", deniedWatch},
	{"users and roles", usersAndRoles},
	{"expired token", expiredToken},
}

func as(user, password string, run func(*clientv3.Client) error) error {
	client, err := dial(clientv3.Config{Username: user, Password: password})
	if err != nil {
		return err
	}
	defer client.Close()
	return run(client)
}

func expectError(what string, got, want error) error {
	if !errors.Is(got, want) {
		return fmt.Errorf("%s: got %v, want %v", what, got, want)
	}
	return nil
}

func logins(ctx context.Context, _ *clientv3.Client) error {
	// The client logs in with its first connection, and reports what became of it.
	wrong := as("app", "another password", func(*clientv3.Client) error { return nil })
	nobody := as("nobody", password, func(*clientv3.Client) error { return nil })
	anonymous := as("", "", func(c *clientv3.Client) error {
		_, err := c.Get(ctx, base)
		return err
	})
	return errors.Join(
		expectError("wrong password", wrong, rpctypes.ErrAuthFailed),
		expectError("unknown user", nobody, rpctypes.ErrAuthFailed),
		expectError("without a user", anonymous, rpctypes.ErrUserEmpty),
	)
}

func permissions(ctx context.Context, c *clientv3.Client) error {
	outside := "elsewhere/key"
	_, get := c.Get(ctx, outside)
	_, all := c.Get(ctx, "", clientv3.WithPrefix())
	_, put := c.Put(ctx, outside, "")
	_, remove := c.Delete(ctx, base, clientv3.WithFromKey())
	_, nested := c.Txn(ctx).Then(clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpPut(outside, "")})).Commit()
	_, compare := c.Txn(ctx).If(clientv3.Compare(clientv3.Version(outside), "=", 0)).Commit()
	_, enable := c.AuthEnable(ctx)
	_, add := c.UserAdd(ctx, "mallory", "")
	denied := []struct {
		what string
		err  error
	}{
		{"get", get}, {"get all", all}, {"put", put}, {"delete", remove}, {"nested put", nested}, {"compare", compare},
		{"enable auth", enable}, {"add a user", add},
	}
	var failures error
	for _, call := range denied {
		failures = errors.Join(failures, expectError(call.what, call.err, rpctypes.ErrPermissionDenied))
	}
	reader := as("reader", password, func(reader *clientv3.Client) error {
		if _, err := reader.Get(ctx, base, clientv3.WithPrefix()); err != nil {
			return err
		}
		_, err := reader.Put(ctx, base+"permissions", "")
		return expectError("put of a reader", err, rpctypes.ErrPermissionDenied)
	})
	return errors.Join(failures, reader)
}

func deniedWatch(ctx context.Context, c *clientv3.Client) error {
	for ctx.Err() == nil {
		watching, cancel := context.WithCancel(ctx)
		answer, open := <-c.Watch(watching, "elsewhere/", clientv3.WithPrefix())
		cancel()
		if !open || !answer.Canceled {
			return fmt.Errorf("expected the end of the watch, got %+v", answer)
		}
		// The text comes in the answer, without a code. A signed token ends when users change, as they do in other runs of this; the
		// client logs in again for a call, not for a watch.
		if answer.Err().Error() == rpctypes.ErrGRPCAuthOldRevision.Error() {
			if _, err := c.Get(ctx, base); err != nil {
				return err
			}
			continue
		}
		return expect("reason", answer.Err().Error(), rpctypes.ErrGRPCPermissionDenied.Error())
	}
	return ctx.Err()
}

func usersAndRoles(ctx context.Context, _ *clientv3.Client) error {
	user, role := fmt.Sprintf("user-%d", os.Getpid()), fmt.Sprintf("role-%d", os.Getpid())
	key := base + "users"
	return as("root", password, func(root *clientv3.Client) error {
		if err := cluster(ctx, root); err != nil {
			return err
		}
		if _, err := root.UserAdd(ctx, user, "old"); err != nil {
			return err
		}
		if _, err := root.UserAdd(ctx, user, "old"); !errors.Is(err, rpctypes.ErrUserAlreadyExist) {
			return fmt.Errorf("a second user of that name: %v", err)
		}
		if _, err := root.RoleAdd(ctx, role); err != nil {
			return err
		}
		permission := clientv3.PermissionType(clientv3.PermReadWrite)
		if _, err := root.RoleGrantPermission(ctx, role, base, clientv3.GetPrefixRangeEnd(base), permission); err != nil {
			return err
		}
		if _, err := root.UserGrantRole(ctx, user, role); err != nil {
			return err
		}
		granted, err := root.UserGet(ctx, user)
		if err != nil {
			return err
		}
		shown, err := root.RoleGet(ctx, role)
		if err != nil {
			return err
		}
		if err := errors.Join(expect("roles", len(granted.Roles), 1), expect("permissions", len(shown.Perm), 1), expect("key", string(shown.Perm[0].Key), base)); err != nil {
			return err
		}
		err = as(user, "old", func(c *clientv3.Client) error {
			if _, err := c.Put(ctx, key, "1"); err != nil {
				return err
			}
			// Users change under its token: it logs in again by itself.
			if _, err := root.UserChangePassword(ctx, user, "new"); err != nil {
				return err
			}
			old := as(user, "old", func(*clientv3.Client) error { return nil })
			return expectError("the old password", old, rpctypes.ErrAuthFailed)
		})
		if err != nil {
			return err
		}
		err = as(user, "new", func(c *clientv3.Client) error {
			if _, err := c.Get(ctx, key); err != nil {
				return err
			}
			if _, err := root.UserRevokeRole(ctx, user, role); err != nil {
				return err
			}
			_, err := c.Get(ctx, key)
			return expectError("without its role", err, rpctypes.ErrPermissionDenied)
		})
		if err != nil {
			return err
		}
		if _, err := root.UserDelete(ctx, user); err != nil {
			return err
		}
		_, err = root.RoleDelete(ctx, role)
		return err
	})
}

// A token that nobody uses ends. The client gets "invalid auth token", logs in again and repeats the call; a watch goes on.
func expiredToken(ctx context.Context, _ *clientv3.Client) error {
	return as("app", password, func(c *clientv3.Client) error {
		key := base + "token"
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		events := c.Watch(watching, key, clientv3.WithCreatedNotify())
		if answer := <-events; !answer.Created {
			return fmt.Errorf("expected the confirmation, got %+v", answer)
		}
		for turn := range 2 {
			time.Sleep(tokenTTL + 2*time.Second)
			if turn == 0 {
				if _, err := c.Get(ctx, key); err != nil {
					return err
				}
				continue
			}
			if _, err := c.Put(ctx, key, "1"); err != nil {
				return err
			}
		}
		answer, open := <-events
		if !open || answer.Err() != nil {
			return fmt.Errorf("the watch ended: %v", answer.Err())
		}
		return expect("events", len(answer.Events), 1)
	})
}
