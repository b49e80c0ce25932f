// SPDX-License-Identifier: Apache-2.0

// Command agent is the refund orchestrator, without a model: it does what each line of standard input orders, "tools", or a tool and its
// arguments as JSON, and writes what came of it as lines of JSON. It holds no data, no key and no tool: all it can do is to ask Remit, over MCP.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strings"

	"remit/examples/orchestrator"
)

func main() {
	ctx := context.Background()
	o, err := orchestrator.New(ctx, "refund")
	if err != nil {
		log.Fatal(err)
	}
	defer o.Close() //nolint:errcheck // it is over
	err = o.Work(ctx, os.Stdin, func(ctx context.Context, order string) error {
		if order == "tools" {
			return o.List(ctx)
		}
		tool, args, _ := strings.Cut(order, " ")
		_, err := o.Call(ctx, false, tool, json.RawMessage(args))
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}
