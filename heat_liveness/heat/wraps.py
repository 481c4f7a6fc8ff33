# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""Methods of Heat's that meet what a dead engine has left, or what came twice.

Whatever is run again meets what was there the first time.  Mostly Heat takes that well; these
are the seven places in which it does not.  Each wrapper says what Heat would do without it;
:mod:`.bridge` has the table of what they are put round.

What was **left half-way**:

* a resource that was replaced half-made stands beside its replacement (:func:`leave_behind`);
* a nested stack, or a project or a user in Keystone, was made, and nothing of Heat's names it yet
  (:func:`find_nested`, :func:`find_project`, :func:`replace_user`);
* a delete goes on with the trust that is stored with the stack, and deletes that very trust
  (:func:`authenticate_early`).

What came **twice**: the message of a resource that is replaced, since the first had only seemed
lost (:func:`leave_replaced`, :func:`replace_once`).

Why that is safe: what Heat does well by itself it does as before.  Four of them act only where
Heat has refused or would refuse, two only on what was replaced for the same template already,
and :func:`authenticate_early` asks for what Heat asks for a moment later.  What is found there is
known by its name, which holds the id of a resource or a stack, so nobody else has made it for
something else; where it is not the only one of that name, Heat's own error stands.

Each gets the engine's lifecycle and the method, and returns what stands in its place.
"""

import logging
from collections.abc import Callable
from typing import Any

from heat.common import exception as heat_exception
from heat.engine import check_resource
from heat.objects import raw_template as template_objects
from heat.objects import resource as resource_objects
from heat.objects import stack as stack_objects
from keystoneclient import exceptions as keystone

LOG = logging.getLogger(__name__)


def leave_behind(life: object, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Resource.suspend``: what was replaced half-made, and is there still, is left alone.

    Heat suspends all that a stack has in the database, and refuses what has failed.  Such a row
    goes with the next update, and another, younger one stands for the resource.
    """
    def suspend(self: Any) -> Any:
        if self.status == self.FAILED and any(
                row.name == self.name and row.id > self.id
                for row in resource_objects.Resource.get_all_active_by_stack(
                    self.context, self.stack.id).values()):
            LOG.info('%s is not suspended: another has taken its place.', self)
            return None
        return original(self)
    return suspend


def leave_replaced(life: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Resource.update_convergence``: what was replaced already is not touched again.

    A message that comes late would have it made ready for its replacement once more: that
    takes a port's addresses, and what it writes down of them for a rollback is lost.
    What was read before it was replaced is caught by :func:`replace_once`.
    """
    def update_convergence(self: Any, template_id: int, *args: Any, **kwargs: Any) -> Any:
        if self.replaced_by is not None and life.replaced(self.id, template_id):
            LOG.info('%s is not updated: another has taken its place.', self)
            # Heat ends the check there, and does no more than see whether a newer traversal waits.
            raise check_resource.CancelOperation
        return original(self, template_id, *args, **kwargs)
    return update_convergence


def replace_once(life: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the statement that makes a replacement: there is one for each template.

    It changes what it replaces only where that is as it was read.  Heat reads it again where
    that fails, since a signal may have come between; but that may be a replacement as well.
    """
    def replacement(context: Any, existing_res_id: int, new_res_values: dict[str, Any],
                    *args: Any, **kwargs: Any) -> Any:
        if life.replaced(existing_res_id, new_res_values['current_template_id']):
            # Heat takes it for a check that is overtaken, and does nothing more.
            raise heat_exception.UpdateInProgress(resource_name=new_res_values['name'])
        return original(context, existing_res_id, new_res_values, *args, **kwargs)
    return replacement


def authenticate_early(life: object, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Stack._delete_credentials`` for contexts that live by the stack's own trust.

    It deletes the trust, and then asks for a Keystone client to delete the stack's project
    with.  That client would authenticate by the trust that is gone; one that was made before
    does not need to.
    """
    def delete_credentials(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.stack_user_project_id and self.context.trust_id:
            try:
                self.clients.client('keystone')
            except Exception as error:
                LOG.warning('Keystone gives no client for stack %s: %s', self.id, error)
        return original(self, *args, **kwargs)
    return delete_credentials


def find_nested(life: object, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the request to create a nested stack: one that its resource has already is taken.

    A dead engine may have asked for it, which nobody could see before it was made.  It bears the
    name of the resource's uuid; so it is made by nobody else, and left by nobody who fails.
    """
    def create_stack(self: Any, ctxt: Any, stack_name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, ctxt, stack_name, *args, **kwargs)
        except heat_exception.StackExists:
            owner_id, name = kwargs.get('owner_id'), kwargs.get('parent_resource_name')
            found = owner_id and stack_objects.Stack.get_by_name_and_owner_id(
                ctxt, stack_name, owner_id)
            if not found or found.parent_resource_name != name:
                raise
            if kwargs.get('template_id') is not None:
                template_objects.RawTemplate.delete(ctxt, kwargs['template_id'])
            LOG.info('The nested stack %s (%s) was asked for by an engine that died, and is used.',
                     stack_name, found.id)
            return {'stack_id': found.id}
    return create_stack


def find_project(life: object, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the creation of a stack's project in Keystone: one that is there already is used.

    Its name holds the stack's id.  An engine that died before it had written the project down
    would otherwise leave a stack in which no such resource can ever be made.
    """
    def create_stack_domain_project(self: Any, stack_id: str) -> Any:
        try:
            return original(self, stack_id)
        except keystone.Conflict:
            name = f'{self.context.project_id}-{stack_id}'[:64]
            found = self.domain_admin_client.projects.list(
                domain=self.stack_domain_id, name=name)
            if len(found) != 1:
                raise
            LOG.info('The project of stack %s was made by an engine that died, and is used.',
                     stack_id)
            return found[0].id
    return create_stack_domain_project


def replace_user(life: object, original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the creation of a resource's user in Keystone: one that is there already is replaced.

    Its name holds the resource's uuid, and the password that an engine gave it is lost with that.
    """
    def create_stack_domain_user(self: Any, username: str, project_id: str,
                                 password: str | None = None) -> Any:
        try:
            return original(self, username, project_id, password)
        except keystone.Conflict:
            found = self.domain_admin_client.users.list(
                domain=self.stack_domain_id, name=self._get_username(username))
            if len(found) != 1:
                raise
            self.domain_admin_client.users.delete(found[0])
            LOG.info('The user %s was made by an engine that died, and is made again.', username)
            return original(self, username, project_id, password)
    return create_stack_domain_user
