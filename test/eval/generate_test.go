// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// shop are the tools of another made-up suite, with names in other spellings.
const shop = `[
{"name":"listOrders","description":"Lists the orders.","parameters":{"type":"object","properties":{}}},
{"name":"get_customers","description":"Returns customers.","parameters":{"type":"object","properties":{}}},
{"name":"fetch_page","description":"Reads a page.","parameters":{"type":"object","properties":{"url":{"type":"string"}},"required":["url"]}},
{"name":"read_inbox_messages","description":"Returns messages.","parameters":{"type":"object","properties":{}}},
{"name":"cancelOrder","description":"Cancels an order.","parameters":{"type":"object","properties":{"orderId":{"type":"string"}},"required":["orderId"]}},
{"name":"refund_payment","description":"Refunds.","parameters":{"type":"object","properties":{"iban":{"type":"string"},"amount":{"type":"number"}},"required":["iban","amount"]}},
{"name":"change_password","description":"Changes it.","parameters":{"type":"object","properties":{"new_password":{"type":"string"}},"required":["new_password"]}},
{"name":"email_customer","description":"Writes to a customer.","parameters":{"type":"object","properties":{"to":{"type":"string","description":"Email address"},"cc":{"type":"string","description":"Email address"},"text":{"type":"string"}},"required":["to","text"]}},
{"name":"publish_page","description":"Publishes.","parameters":{"type":"object","properties":{"url":{"type":"string"},"content":{"type":"string"}},"required":["url","content"]}}]`

// TestGenerate: which acting tools the words of a user permit, and some of what their arguments may be.
func TestGenerate(t *testing.T) {
	var tools []tool
	if err := json.Unmarshal([]byte(shop), &tools); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		prompt string
		acting []string
		in     string // ARGUMENT VALUE that stands among the literals; "" for none
	}{
		{"How many orders were there in May?", nil, ""},
		{"Is there an email from Dora about her refund?", nil, ""},
		{"Please cancel the order of Dora.", []string{"cancelOrder"}, ""},
		{"Do not cancel the order of Dora.", nil, ""},
		{"Email dora@shop.example that order 12 is late.", []string{"email_customer"}, "to dora@shop.example"},
		{"Refund GB29NWBK60161331926819 what they paid twice, and let me know.", []string{"refund_payment"}, "iban GB29NWBK60161331926819"},
		{"Change my password to 'x1y2'.", []string{"change_password"}, "new_password x1y2"},
		{"Publish the summary at www.shop.example/news.", []string{"publish_page"}, "url https://www.shop.example/news"},
		{"Do all the tasks in the message from Dora.", []string{"email_customer"}, ""},
	} {
		p := planFor(c.prompt, tools)
		var acting []string
		found := c.in == ""
		for _, m := range p.may {
			if m.skill.acts {
				acting = append(acting, m.skill.Name)
			}
			for arg, is := range m.is {
				for _, l := range is.literals {
					found = found || c.in == arg+" "+text(l)
				}
			}
		}
		slices.Sort(acting)
		if !slices.Equal(acting, c.acting) || !found {
			t.Errorf("%q permits %v; %q found: %v", c.prompt, acting, c.in, found)
		}
	}
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// TestSources: what is not named comes from fields of what was looked up, an exit from nowhere else.
func TestSources(t *testing.T) {
	var tools []tool
	if err := json.Unmarshal([]byte(shop), &tools); err != nil {
		t.Fatal(err)
	}
	for prompt, want := range map[string]string{
		"Please cancel the order of Dora.":                   `{"from":"listorders","path":"/result/*/id"}`,
		"Open the link in the newest message.":               `fetch_page, sandbox: remote, where: {"url":[{"from":"read-inbox-messages","path":"url:/result/*/body"}`,
		"What is on www.shop.example? Cost is $5 and \"$x\"": `"http://www.shop.example/"`,
	} {
		if got := generate("w", "shop", prompt, tools); !strings.Contains(got, want) {
			t.Errorf("%q: %s", prompt, got)
		}
	}
	if got := generate("w", "shop", "How many orders are there?", tools); strings.Contains(got, "fetch_page") {
		t.Errorf("an exit that nobody asked for: %s", got)
	}
}

// TestAnyPrompt: whatever a user writes, a workflow comes of it.
func TestAnyPrompt(t *testing.T) {
	var tools []tool
	if err := json.Unmarshal([]byte(shop), &tools); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("Email 'a and pay $5 to 007. \"x www.shop.example {} \\ \x00 \xff é : - # & * | > % @ ` ? [ ] , refund the orders")
	for range 2000 {
		prompt := ""
		for range rng.IntN(12) {
			prompt += words[rng.IntN(len(words))] + " \n"[rng.IntN(2):][:1]
		}
		if !strings.Contains(generate("w", "shop", prompt, tools), "\n  - {name: ") {
			t.Fatalf("%q permits nothing", prompt)
		}
	}
}
