// SPDX-License-Identifier: Apache-2.0

package authzen

import (
	"remit"
)

// evaluation is one evaluation request as it was written. The four parts are values of their own, because a batch's items
// override the batch's defaults part by part, never field by field (section 7.1.1).
type evaluation struct {
	subject  *subject
	action   *action
	resource *resource
	context  *circumstances
}

type subject struct{ kind, id, token, thumbprint string }

type action struct {
	name string
	args remit.Args
}

type resource struct {
	kind, id string
	args     remit.Args
}

// circumstances are what is read from context.
type circumstances struct {
	token, run, stage, permission, under, approval string
	keeps                                          []string // the kinds of obligations that it knows
}

func invalid(msg string) error { return &remit.Error{Code: remit.CodeInvalid, Msg: msg} }

// space is where the parts of one evaluation are stored, so that they cost one allocation.
type space struct {
	evaluation
	s subject
	a action
	r resource
	c circumstances
}

// member reads one of the four parts; other members are ignored, but must be JSON. Null is absent.
func (e *space) member(d *remit.Decoder, name string) error {
	switch name {
	case "subject", "action", "resource", "context":
	default:
		return d.Skip()
	}
	if d.Null() {
		return nil
	}
	switch name {
	case "subject":
		e.subject = &e.s
		return d.Object(func(name string) error { return e.s.member(d, name) })
	case "action":
		e.action = &e.a
		return d.Object(func(name string) error { return e.a.member(d, name) })
	case "resource":
		e.resource = &e.r
		return d.Object(func(name string) error { return e.r.member(d, name) })
	default:
		e.context = &e.c
		return d.Object(func(name string) error { return e.c.member(d, name) })
	}
}

func text(d *remit.Decoder, into *string) (err error) {
	if !d.Null() {
		*into, err = d.Text()
	}
	return err
}

func args(d *remit.Decoder, into *remit.Args) error {
	if d.Null() {
		return nil
	}
	out := remit.Args{}
	*into = out
	return d.Object(func(name string) error {
		v, err := d.Value()
		if !v.IsNull() {
			out[name] = v
		}
		return err
	})
}

func (s *subject) member(d *remit.Decoder, name string) error {
	switch name {
	case "type":
		return text(d, &s.kind)
	case "id":
		return text(d, &s.id)
	case "properties":
		if d.Null() {
			return nil
		}
		return d.Object(func(name string) error {
			switch name {
			case "token":
				return text(d, &s.token)
			case "x5t#S256":
				return text(d, &s.thumbprint)
			}
			return d.Skip()
		})
	}
	return d.Skip()
}

func (a *action) member(d *remit.Decoder, name string) error {
	switch name {
	case "name":
		return text(d, &a.name)
	case "properties":
		return args(d, &a.args)
	}
	return d.Skip()
}

func (r *resource) member(d *remit.Decoder, name string) error {
	switch name {
	case "type":
		return text(d, &r.kind)
	case "id":
		return text(d, &r.id)
	case "properties":
		return args(d, &r.args)
	}
	return d.Skip()
}

func (c *circumstances) member(d *remit.Decoder, name string) error {
	switch name {
	case "run_token":
		return text(d, &c.token)
	case "run":
		return text(d, &c.run)
	case "stage":
		return text(d, &c.stage)
	case "permission":
		return text(d, &c.permission)
	case "under":
		return text(d, &c.under)
	case "approval": // it is not believed: what was approved is found by what is asked
		if d.Null() {
			return nil
		}
		return d.Object(func(name string) error {
			if name == "id" {
				return text(d, &c.approval)
			}
			return d.Skip()
		})
	case "supported_obligations":
		return d.List(func() error {
			var kind string
			if err := text(d, &kind); err != nil {
				return err
			}
			if c.keeps = append(c.keeps, kind); len(c.keeps) > 64 {
				return invalid("context.supported_obligations has more than 64 entries")
			}
			return nil
		})
	}
	return d.Skip()
}

// over returns e with the parts that it lacks taken from the defaults, as whole parts.
func (e evaluation) over(defaults *evaluation) evaluation {
	if e.subject == nil {
		e.subject = defaults.subject
	}
	if e.action == nil {
		e.action = defaults.action
	}
	if e.resource == nil {
		e.resource = defaults.resource
	}
	if e.context == nil {
		e.context = defaults.context
	}
	return e
}

// complete checks that what is required stands there.
func (e *evaluation) complete() error {
	switch {
	case e.subject == nil:
		return invalid("subject is missing")
	case e.subject.kind == "" || e.subject.id == "":
		return invalid("subject needs type and id")
	case e.action == nil || e.action.name == "":
		return invalid("action needs a name")
	case e.resource == nil:
		return invalid("resource is missing")
	case e.resource.kind == "" || e.resource.id == "":
		return invalid("resource needs type and id")
	}
	return nil
}

// approval is the id of the one that the context names.
func (e *evaluation) approval() string {
	if e.context == nil {
		return ""
	}
	return e.context.approval
}

// arguments are the properties of resource and action together: an argument that the policy did not see would be one that
// it did not bound.
func (e *evaluation) arguments() (remit.Args, error) {
	if len(e.action.args) == 0 {
		return e.resource.args, nil
	}
	if len(e.resource.args) == 0 {
		return e.action.args, nil
	}
	out := make(remit.Args, len(e.resource.args)+len(e.action.args))
	for k, v := range e.resource.args {
		out[k] = v
	}
	for k, v := range e.action.args {
		//remit:guard S17 TestBadRequests
		if _, twice := out[k]; twice {
			return nil, invalid("a property stands in both action and resource")
		}
		out[k] = v
	}
	return out, nil
}
