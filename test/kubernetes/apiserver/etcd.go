// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// startEtcd starts a one-member etcd on two free loopback ports. It does not sync to disk: the cluster is thrown away.
func startEtcd(ctx context.Context, dir string) (client string, stop func(), err error) {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.UnsafeNoFsync, cfg.LogLevel = dir, true, "fatal"
	var urls [2][]url.URL
	for i := range urls {
		port, err := freePort()
		if err != nil {
			return "", nil, err
		}
		urls[i] = []url.URL{{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}}
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = urls[0], urls[0]
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = urls[1], urls[1]
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return "", nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
		return urls[0][0].String(), e.Close, nil
	case err = <-e.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(time.Minute):
		err = fmt.Errorf("not ready after a minute")
	}
	e.Close()
	return "", nil, err
}
