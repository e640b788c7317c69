"""A box whose walls are mirrors, with a spring before each."""

import taichi as ti

# Within this part of a spacing from a wall a spring pushes back.
DEPTH = 0.25


@ti.data_oriented
class MirrorWalls:
    """Reflections in the walls of the box [0, size]. Derived classes set the attributes.

    Attributes:
        dim, size: of the box.
        radius: how far a particle's image matters.
        depth: of the springs.
    """

    dim: int
    size: tuple[float, ...]
    radius: float
    depth: float

    @ti.func
    def fold(self, place, axis: ti.template()):
        """Where inside the box the images of a coordinate are, and on which side: its derivative, 1 or -1."""
        image, side = place, 1.0
        if place < 0.0 or place > ti.static(self.size[axis]):
            image = place - 2.0 * self.size[axis] * ti.floor(place / (2.0 * self.size[axis]) + 0.5)
            if image < 0.0:
                image, side = -image, -1.0
        return image, side

    @ti.func
    def beyond_wall(self, place, axis: ti.template()):
        """How far a coordinate is inside the springs of the walls across `axis`, positive at the lower one."""
        upper = ti.static(self.size[axis] - self.depth)
        return ti.max(self.depth - place, 0.0) - ti.max(place - upper, 0.0)

    @ti.func
    def image(self, x, choice):
        """The reflection mirror ∘ y + offset in the walls at x that `choice` has a bit for; 1 if it matters, or 0."""
        mirror, offset, some = ti.Vector.one(float, self.dim), ti.Vector.zero(float, self.dim), 1
        for axis in ti.static(range(self.dim)):
            if (choice >> axis) % 2 == 1:
                mirror[axis] = -1.0
                if x[axis] > 0.5 * self.size[axis]:
                    offset[axis] = 2.0 * self.size[axis]
                if ti.abs(2.0 * x[axis] - offset[axis]) >= 2.0 * self.radius:
                    some = 0
        return mirror, offset, some
